"""Files from elsewhere: JSON objects and NumPy arrays of an expected form, or a clear error.

A file may be damaged, of another program or forged. Nothing in it is run, and no header decides how
much memory is taken.
"""

import contextlib
import io
import json
import math
import pathlib
import reprlib
import zipfile
from collections.abc import Iterator, Mapping
from types import NoneType
from typing import Any

import jax
import numpy as np

__all__ = ["misfit", "parse_object", "read_arrays", "read_npy", "read_object"]

HEADER = 2**14  # bytes before an array's own; NumPy reads 10,000 characters of them at most
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what NumPy writes; others unpack unbounded
LARGEST = 2**63  # whole numbers below it, and above minus it, can be counted with
ABSENT = object()
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
    NoneType: "null",
}


def read_object(path: str | pathlib.Path, form: Any = dict, *, remedy: str = "") -> dict[str, Any]:
    """A JSON object from a file.

    Args:
      path: of the file, in UTF-8.
      form: what it must hold, see :func:`misfit`.
      remedy: what an error tells the user to do.

    Raises:
      ValueError: no JSON, or another form; the message names the file and where in it.
      OSError: the file cannot be read.
    """
    return parse_object(pathlib.Path(path).read_bytes(), str(path), form, remedy=remedy)


def parse_object(
    content: str | bytes, where: str, form: Any = dict, *, remedy: str = ""
) -> dict[str, Any]:
    """A JSON object from its text; ``where`` it comes from begins the message of an error.

    Raises:
      ValueError: no JSON object, or another form.

    Example:
      >>> parse_object('{"step": 3}', "log.jsonl, line 1", {"step": int})
      {'step': 3}
    """
    end = f"; {remedy}" if remedy else ""
    try:
        value = json.loads(content if isinstance(content, str) else content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON ({error}){end}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} holds {reprlib.repr(value)}; it must hold a JSON object{end}")
    wrong = misfit(value, form)
    if wrong is not None:
        raise ValueError(f"{where}: {wrong}{end}")
    return value


def misfit(value: Any, form: Any) -> str | None:
    """Where a value from JSON is not as ``form`` asks, in words; None where it is.

    Args:
      value: from JSON.
      form: a type that the value has, or a tuple of several; ``float`` is any number and ``object``
        anything. ``[form]`` is a list of such values. ``{"name": form}`` is an object with these
        entries, where ``"name?"`` may be missing, and maybe others, which have the form of ``...``
        if there is one.

    Example:
      >>> misfit({"rows": [{"nfe": 1}, {"nfe": "2"}]}, {"rows": [{"nfe": int}]})
      "rows[1].nfe is '2'; it must be a whole number"
      >>> misfit({}, {"rows": list})
      'rows is missing'
    """
    found = _misfit(value, form)
    return None if found is None else "".join(found).removeprefix(".")


def _misfit(value: Any, form: Any) -> tuple[str, str] | None:
    """Path and complaint of the first misfit."""
    kind = list if isinstance(form, list) else dict if isinstance(form, Mapping) else form
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not _is_one(value, kinds):
        wanted = " or ".join(WORDS[one] for one in kinds)
        return "", f" is {reprlib.repr(value)}; it must be {wanted}"
    for name, (entry, its_form) in _entries(value, form).items():
        if entry is ABSENT:
            return name, " is missing"
        found = _misfit(entry, its_form)
        if found is not None:
            return name + found[0], found[1]
    return None


def _is_one(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a value is of one of the types that JSON has; true and false are no numbers."""
    if object in kinds:
        return True
    if type(value) is int:
        return abs(value) < LARGEST and (int in kinds or float in kinds)
    return type(value) in kinds


def _entries(value: Any, form: Any) -> dict[str, tuple[Any, Any]]:
    """Entries of a list or object that have a form, with it, by their path."""
    if isinstance(form, list):
        return {f"[{at}]": (entry, form[0]) for at, entry in enumerate(value)}
    if not isinstance(form, Mapping):
        return {}
    forms = dict.fromkeys(value, form[...]) if ... in form else {}
    for name in (name for name in form if name is not ...):
        plain = name.removesuffix("?")
        if plain == name or plain in value:
            forms[plain] = form[name]
    return {f".{name}": (value.get(name, ABSENT), own) for name, own in forms.items()}


def read_arrays(
    path: str | pathlib.Path, forms: Mapping[str, jax.ShapeDtypeStruct], *, remedy: str = ""
) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, whose names, shapes and dtypes are known.

    No more is unpacked than these arrays take, whatever the file says of itself.

    Raises:
      ValueError: no such file, or other arrays; the message names the file.
      OSError: the file cannot be read.
    """
    with pathlib.Path(path).open("rb") as file, _named(path, remedy), zipfile.ZipFile(file) as npz:
        other = {f"{name}.npy" for name in forms} ^ set(npz.namelist())
        if other:
            raise ValueError(f"{reprlib.repr(sorted(other))} are missing or not expected")
        return {name: _unpacked(npz, f"{name}.npy", form) for name, form in forms.items()}


def read_npy(
    path: str | pathlib.Path, form: jax.ShapeDtypeStruct, *, remedy: str = ""
) -> np.ndarray:
    """The array of an .npy file, whose shape and dtype are known.

    Raises:
      ValueError: no such file, or another array; the message names the file.
      OSError: the file cannot be read.
    """
    with pathlib.Path(path).open("rb") as file, _named(path, remedy):
        return _array(file.read(_most(form) + 1), form)


@contextlib.contextmanager
def _named(path: str | pathlib.Path, remedy: str) -> Iterator[None]:
    """Whatever is raised by a reader of a file's content as a ValueError with the file's name."""
    try:
        yield
    except Exception as error:  # zipfile, zlib and NumPy's parser do not say what they raise
        end = f"; {remedy}" if remedy else ""
        raise ValueError(f"{path} cannot be read as arrays: {error}{end}") from error


def _most(form: jax.ShapeDtypeStruct) -> int:
    """Bytes of an array's file at most."""
    return math.prod(form.shape) * form.dtype.itemsize + HEADER


def _unpacked(npz: zipfile.ZipFile, name: str, form: jax.ShapeDtypeStruct) -> np.ndarray:
    if npz.getinfo(name).compress_type not in PACKED:
        raise ValueError(f"{name} is packed in a way that numpy does not write")
    with npz.open(name) as file:
        return _array(file.read(_most(form) + 1), form)


def _array(content: bytes, form: jax.ShapeDtypeStruct) -> np.ndarray:
    """The array of a .npy file's content, once its header is as expected."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"version {version} of the format is not read")
    shape, _, dtype = HEADERS[version](file)
    if shape != form.shape or dtype != form.dtype:
        raise ValueError(
            f"it holds {dtype} of shape {reprlib.repr(shape)}, expected is {form.dtype} of shape "
            f"{form.shape}"
        )
    size = len(content) - file.tell()
    if size != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"it has {size} bytes or more of {dtype} of shape {shape}")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)
