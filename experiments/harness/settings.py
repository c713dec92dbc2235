"""Configs in parts, flat on the command line and in records; checks of what they hold."""

import contextlib
import dataclasses
import pathlib
import reprlib
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from sinkflow.files import misfit

Config = TypeVar("Config")


def parts(config_class: type) -> dict[str, type]:
    """Names and classes of the parts that a config is made of."""
    made_by: dict[str, Any] = {
        field.name: field.default_factory for field in dataclasses.fields(config_class)
    }
    return {
        name: factory
        for name, factory in made_by.items()
        if isinstance(factory, type) and dataclasses.is_dataclass(factory)
    }


def made(config_class: type[Config], **values: Any) -> Config:
    """A config from the values of its settings, whichever part they belong to."""
    own = {}
    for name, part in parts(config_class).items():
        taken = [field.name for field in dataclasses.fields(part) if field.name in values]
        own[name] = part(**{setting: values.pop(setting) for setting in taken})
    return config_class(**own, **values)


def flat(config: Any) -> dict[str, Any]:
    """All settings of a config by their names alone, as flags and records have them."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        values |= flat(value) if dataclasses.is_dataclass(value) else {field.name: value}
    return values


def replaced(config: Config, **changes: Any) -> Config:
    """The config with other values of some settings, whichever part they belong to."""
    return made(type(config), **{**flat(config), **changes})


def from_record(config_class: type[Config], record: Mapping[str, Any]) -> Config:
    """The config that a record was written from; JSON has lists for tuples."""
    return made(config_class, **checked(config_class, record))


def checked(config_class: type, record: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a record, once they are known and of their types; lists become tuples.

    Raises:
      ValueError: a setting that the config does not have, or a value of another type.
    """
    types = setting_types(config_class)
    for name, value in record.items():
        if name not in types:
            raise ValueError(f"{name} is no setting; there are {', '.join(types)}")
        if not _is_of(value, types[name]):
            kind = getattr(types[name], "__name__", "")
            wanted = kind if kind in ("int", "float", "str", "bool") else str(types[name])
            raise ValueError(f"{name} is {reprlib.repr(value)}; its type is {wanted}")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}


def setting_types(config_class: type) -> dict[str, Any]:
    """Types of all settings of a config, by their names alone."""
    hints, inner = typing.get_type_hints(config_class), parts(config_class)
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        own = {field.name: hints[field.name]}
        found |= setting_types(inner[field.name]) if field.name in inner else own
    return found


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value from JSON is of a setting's type."""
    inner = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:  # of any length, as all settings are
        return isinstance(value, list | tuple) and all(_is_of(one, inner[0]) for one in value)
    if inner:  # a choice of words
        return isinstance(value, str) and value in inner
    return misfit(value, hint) is None


@contextlib.contextmanager
def naming(path: pathlib.Path):
    """Puts a file's name before what is wrong with the settings that it holds."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_steps(steps_per_call: int, **counts: int) -> None:
    """Raises ValueError that names the first count that whole calls do not make up."""
    check_positive_counts(steps_per_call=steps_per_call)
    for name, count in counts.items():
        if count < 1 or count % steps_per_call:
            raise ValueError(f"{name} is {count}; it must be a multiple of {steps_per_call}")


def check_widths(name: str, widths: tuple[int, ...]) -> None:
    """Raises ValueError unless every width is at least 1."""
    if any(width < 1 for width in widths):
        raise ValueError(f"{name} is {tuple(widths)}; each must be at least 1")


def check_ranges(part: Any, **ranges: tuple[bool, str]) -> None:
    """Raises ValueError that names the first setting outside of its range (inside, range)."""
    for name, (inside, allowed) in ranges.items():
        if not inside:
            raise ValueError(f"{name} is {getattr(part, name)}; it lies in {allowed}")


def check_positive_counts(**counts: int) -> None:
    """Raises ValueError that names the first count below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")


def check_batch(batch_size: int) -> None:
    """Raises ValueError for a batch that the devices cannot share evenly."""
    count = jax.device_count()
    if batch_size < 1 or batch_size % count:
        raise ValueError(
            f"batch_size is {batch_size}; it must be a positive multiple of {count} devices"
        )


def require_finite(name: str, values: Any) -> None:
    """Raises ValueError with the number of non-finite rows of a cloud."""
    rows = ~np.isfinite(np.asarray(values)).reshape(len(values), -1).all(axis=1)
    if rows.any():
        raise ValueError(f"{name}: {rows.sum()} of {len(rows)} particles are not finite")
