"""One-step generators trained through the Sinkhorn loss, and opponents without a solver.

Command:  python -m experiments.generator [--dataset digits|mnist|fashion|moons|...] [--labels]
Runtime:  half a minute on two CPU cores for the default, and for digits; images need a GPU. --smoke
          ends in under a minute.
Expected: samples.png, interpolation.png, loss.png, of digits and images neighbours.png, and
          result.json with the scores of one network evaluation beside their floor. By default W2
          is within 5% of the floor.
Source:   arXiv:1706.00292 (the loss); arXiv:2401.14069 (the velocity); arXiv:2605.11755 (the second
          cloud); opponents arXiv:2305.11463 and arXiv:2602.04770.
"""

import argparse
import sys

from experiments.generators import reports
from experiments.generators.checks import check, check_devices
from experiments.generators.config import IMAGES, GeneratorConfig, preset
from experiments.harness import cli, hosts
from sinkflow import data

Config = GeneratorConfig  # named as every driver's


def main(config: GeneratorConfig) -> dict:
    """Trains, samples with one evaluation, measures, draws; returns result.json's content."""
    check(config)
    check_devices(config.clouds)
    if config.dataset in data.TASKS:
        return reports.report_plane(config)
    if config.dataset in IMAGES:
        return reports.report_images(config)
    return reports.report_digits(config)


def defaults(arguments: list[str]) -> GeneratorConfig:
    """What the settings are before the command line changes them: those of its data set."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--dataset", default=GeneratorConfig.dataset)
    parser.add_argument("--smoke", action="store_true")
    asked, _ = parser.parse_known_args(arguments)
    return preset(asked.dataset, smoke=asked.smoke)


if __name__ == "__main__":
    cli.keep_programs()
    with cli.clear_errors():
        hosts.join()
        main(cli.parse(defaults(sys.argv[1:]), __doc__))
