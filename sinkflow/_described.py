"""A network's settings as a file beside its checkpoints, from which it is made again."""

import dataclasses
import importlib
import json
import math
import pathlib
import pkgutil
import typing
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from sinkflow import files, nets

# Orbax takes seconds to load: checkpoint is imported by the function that needs it.

NETWORK = "network.json"
"""File of a run's folder that holds the settings of its network."""
LIBRARY = "sinkflow.nets"  # a network.json names classes of no other package: it runs no code
FORM = {"network": str, "settings": dict, "horizon": float}


def description(network: Any, horizon: float) -> dict[str, Any]:
    """What :func:`sinkflow.load_field` makes the network from, as JSON returns it."""
    kind = type(network)
    if not kind.__module__.startswith(f"{LIBRARY}."):
        raise ValueError(
            f"network is a {kind.__name__} of {kind.__module__}; only those of sinkflow can be "
            "loaded by name: leave network away and read the parameters with checkpoint.load"
        )
    settings = {field.name: getattr(network, field.name) for field in _fields(network)}
    described = {
        "network": f"{kind.__module__}.{kind.__name__}",
        "settings": settings,
        "horizon": float(horizon),
    }
    return json.loads(json.dumps(described, default=lambda dtype: jnp.dtype(dtype).name))


def write(folder: pathlib.Path, described: Mapping[str, Any], resumed: bool) -> None:
    """Writes network.json; a resumed run's must be the same, an older run may have none."""
    from sinkflow import checkpoint

    path = folder / NETWORK
    if resumed and path.exists():
        checkpoint.check_config(path, files.read_object(path), described)
    folder.mkdir(parents=True, exist_ok=True)
    with checkpoint.whole_file(path) as partial:
        partial.write_text(json.dumps(described, indent=1) + "\n")


def read(folder: pathlib.Path) -> tuple[Any, float]:
    """The network that a folder's network.json describes, and its horizon.

    Raises:
      ValueError: the file is damaged, or describes no network of sinkflow.
    """
    described = files.read_object(folder / NETWORK, FORM)
    horizon = described["horizon"]
    try:
        if not 0 < horizon < math.inf:
            raise ValueError(f"horizon is {horizon}; a field ends at a time in (0, inf)")
        return network(described), float(horizon)
    except ValueError as error:
        raise ValueError(f"{folder / NETWORK}: {error}") from error


def network(described: Mapping[str, Any]) -> Any:
    """The network of a description; nothing but a network of sinkflow is ever called.

    Raises:
      ValueError: another name, or settings that the network does not have.
    """
    kind = _network_class(described["network"])
    settings = described["settings"]
    own = {field.name: field for field in _fields(kind)}
    if unknown := sorted(settings.keys() - own.keys()):
        raise ValueError(f"settings has {unknown}; {kind.__name__} has {', '.join(own)}")
    forms = {
        name: _form(field.type)
        for name, field in own.items()
        if name in settings or field.default is dataclasses.MISSING
    }
    wrong = files.misfit(settings, forms)
    if wrong is not None:
        raise ValueError(f"settings: {wrong}")
    if "dtype" in settings and not _is_floating(settings["dtype"]):
        raise ValueError(f"settings: dtype is {settings['dtype']!r}; it must be a floating one")
    lists = {k: tuple(v) for k, v in settings.items() if isinstance(v, list)}
    return kind(**{**settings, **lists})


def _network_class(name: str) -> Any:
    """The class of that full name, if it is a network of sinkflow."""
    module, _, own = name.rpartition(".")
    kind = None
    if module in {f"{LIBRARY}.{found.name}" for found in pkgutil.iter_modules(nets.__path__)}:
        kind = getattr(importlib.import_module(module), own, None)
    is_network = isinstance(kind, type) and issubclass(kind, nn.Module)
    if not is_network or kind.__module__ != module:
        raise ValueError(f"network is {name}; only those of sinkflow are loaded")
    return kind


def _fields(kind: Any) -> list[Any]:
    """Settings of a network's class; Linen gives every class two fields more.

    The axis of devices is none of them: it is of the training, not of what was trained.
    """
    other = ("parent", "name", "axis_name")
    return [field for field in dataclasses.fields(kind) if field.name not in other]


def _form(hint: Any) -> Any:
    """What JSON has for a setting, see :func:`sinkflow.files.misfit`."""
    if inner := typing.get_args(hint):
        # Of sequences; what else has arguments is a dtype, known by its name.
        return [inner[0]] if inner[0] is int else str
    return hint if hint in (bool, int, float, str) else str


def _is_floating(name: str) -> bool:
    try:
        return jnp.issubdtype(jnp.dtype(name), jnp.floating)
    except TypeError:  # there is no such dtype
        return False
