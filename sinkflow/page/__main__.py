"""Writes the live page: ``python -m sinkflow.page [FILE]``."""

import argparse

from sinkflow import page


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sinkflow.page", description=page.__doc__)
    parser.add_argument("file", nargs="?", default="transport.html", help="where to (%(default)s)")
    path = page.write(parser.parse_args().file)
    print(f"{path} ({path.stat().st_size / 1000:.0f} kB): open it in a browser")


if __name__ == "__main__":
    main()
