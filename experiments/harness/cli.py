"""The command line of a driver: flags, help, errors in one line."""

import contextlib
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import pooch
import tyro
from tqdm.auto import tqdm

from experiments.harness import hosts, settings, stopping


def cli(config_class: Any, description: str | None) -> Any:
    """The config from the command line; ``--smoke`` starts from the class's SMOKE values."""
    smoke = "--smoke" in sys.argv[1:]
    values = {**config_class.SMOKE, "smoke": True} if smoke else {}
    return parse(settings.made(config_class, **values), description)


def parse(default: Any, description: str | None) -> Any:
    """A config like ``default`` from the command line, whose flags change it.

    Flags of a config's parts have the names of their settings alone; ``--help`` shows a box for
    each part.
    """
    flags = tyro.conf.OmitArgPrefixes[type(default)]  # type: ignore[misc]
    return tyro.cli(flags, default=default, description=header(description), prog=program())


def header(doc: str | None) -> str:
    """A driver's docstring for ``--help``, which joins lines that no blank line parts."""
    return "\n\n".join(line for line in (doc or "").splitlines() if line)


def program() -> str:
    """How the user started this: python -m experiments.NAME."""
    return f"python -m experiments.{pathlib.Path(sys.argv[0]).stem}"


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Ends the program with one line for what a user can mend, not with a traceback.

    The traceback is shown when SINKFLOW_TRACEBACK is set. A warning is one line too. SIGTERM and
    Ctrl-C end the program with a line that tells what is saved, and with exit code 0 or 130.
    """
    try:
        with warnings.catch_warnings(), stopping.handled():
            warnings.showwarning = _show_warning
            yield
    except stopping.Stopped as stop:
        print(f"stopped by {stopping.REQUESTS.name()}: {stop}; the same command goes on")
        sys.exit(stopping.REQUESTS.code())
    except (ValueError, RuntimeError, OSError, FloatingPointError) as error:
        if os.environ.get("SINKFLOW_TRACEBACK"):
            raise
        if jax.distributed.is_initialized():
            hosts.give_up(error)
        sys.exit(f"error: {error} (SINKFLOW_TRACEBACK=1 shows where)")


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def run_driver(main: Callable[[Any], Any], config_class: type, doc: str | None) -> None:
    """Parses the command line and runs a driver."""
    keep_programs()
    with clear_errors():
        hosts.join()
        main(cli(config_class, f"{doc}\n\n{hosts.HELP}"))


def keep_programs() -> None:
    """Keeps XLA's compiled programs in a folder, so that a second start compiles next to nothing.

    The folder is JAX_COMPILATION_CACHE_DIR, or else one of the user's cache folder. Programs of
    another jax, device or kind of processor are not taken. A damaged file costs a warning and a
    compilation; the folder may be deleted at any time.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(pooch.os_cache("sinkflow") / "xla"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # Hundreds of small programs take as long as a few large ones.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def progress(description: str) -> Callable:
    """A wrapper of iterables that shows a bar on a terminal."""
    return lambda iterable, **options: tqdm(iterable, description, disable=None, **options)
