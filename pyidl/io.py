"""Files: one ``.npz`` with plain arrays and a JSON header.

No pickle, written atomically, read with suspicion.

    header          {"format": "pyidl", "version": 1, "kind": "model", "config": {...}},
                    as UTF-8 bytes
    params/A, ...   the parameters, host arrays

Classes are named in the header and looked up among the public ones of a kind that files
may hold (`offered`), and among those of your own that `load` is given; nothing in a
file is ever executed, and no module is imported because a file names it.
"""

from __future__ import annotations

import dataclasses
import glob
import inspect
import json
import os
import secrets
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pyidl import activations
from pyidl.activations import Activation, Blocks
from pyidl.activations.names import as_activation
from pyidl.arrays.backend import to_numpy
from pyidl.errors import FileFormatError, InputError, expect
from pyidl.layers import Composite, Layer
from pyidl.matrices.pattern import Pattern
from pyidl.solvers import Solver
from pyidl.typing import Setting
from pyidl.wellposed import Constraint

__all__ = ["load", "load_notes", "read_npz", "replacing", "save", "write_npz"]

FORMAT, VERSION = "pyidl", 1

SETTINGS = (Constraint, Solver, Setting)
"""What the options of a layer may be, besides numbers, activations and patterns."""


def offered(*kinds: type) -> dict[str, type[Any]]:
    """The classes of these kinds that pyidl offers, by name, without the abstract ones.

    They are read from the lists `__all__` at the moment of use, so that whatever wing
    is there takes part.
    """
    found = {
        name: getattr(sys.modules[room], name)
        for room in ("pyidl", "pyidl.optim", "pyidl.solvers", "pyidl.wellposed")
        for name in sys.modules[room].__all__
    }
    return {
        name: cls
        for name, cls in found.items()
        if isinstance(cls, type) and issubclass(cls, kinds) and not inspect.isabstract(cls)
    }


def save(path: str | Path, model: Layer, *, notes: Mapping[str, Any] | None = None) -> None:
    """Write a model to a file: its configuration, and its parameters as host arrays.

    The file appears whole or not at all: it is written under another name beside its
    place, and renamed. Layers, cells, constraints and solvers of your own are saved by
    the name of their class, and an activation of your own by its name; give both again
    to `load`. Such a class is a dataclass whose fields say all that it needs: numbers,
    strings, tuples, activations, patterns, and objects or classes of these kinds.

    Parameters
    ----------
    path : str or Path
        Used as it is; ".npz" is a good ending.
    model : Layer
        On any device.
    notes : mapping, optional
        What else is to be known of it, such as the names of its classes. `load_notes`
        returns it as JSON does: keys are strings, tuples lists.

    Raises
    ------
    InputError
        If `model` is not a layer, has a part that files cannot hold, or `notes` is
        nothing for JSON.

    Examples
    --------
    >>> import tempfile, os, pyidl
    >>> path = os.path.join(tempfile.mkdtemp(), "model.npz")
    >>> model = pyidl.ImplicitModel(3, 2, 5, rng=0)
    >>> pyidl.save(path, model)
    >>> U = np.ones((1, 3))
    >>> bool(np.all(pyidl.load(path).predict(U) == model.predict(U)))
    True
    """
    expect("model", model, Layer, "save writes a Layer: save(path, model)")
    own: dict[str, type] = {}
    header = {"kind": "model", "config": _encode_layer(model, own)}
    if own:
        header["classes"] = list(own)
    if notes is not None:
        try:
            header["notes"] = dict(notes)
            json.dumps(header["notes"])
        except (TypeError, ValueError) as error:
            raise InputError(
                f"notes cannot be written as JSON ({error}); give a dictionary of strings, "
                "numbers, lists and dictionaries"
            ) from None
    write_npz(path, {f"params/{key}": to_numpy(a) for key, a in model.params.items()}, header)


def load(
    path: str | Path,
    device: str = "cpu",
    activation: Activation | Mapping[str, Activation] | None = None,
    classes: Iterable[type] = (),
) -> Layer:
    """Read a model that `save` has written.

    Parameters
    ----------
    path : str or Path
        The file.
    device : str
        Where the parameters go: "cpu" or "cuda".
    activation : Activation or mapping of str to Activation, optional
        The activation that is not built in, or all of them by name.
    classes : iterable of classes
        Those of your own that the model is made of: layers, cells, constraints,
        solvers.

    Returns
    -------
    Layer
        With the parameters that were saved, bit for bit.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileFormatError
        If it is damaged, is no file of pyidl, holds no model, or was written by a newer
        version.
    InputError
        If it needs an activation or a class that was not given; the message has the
        call to write.

    Examples
    --------
    >>> import tempfile, os, pyidl
    >>> path = os.path.join(tempfile.mkdtemp(), "model.npz")
    >>> pyidl.save(path, pyidl.Linear(3, 2))
    >>> pyidl.load(path).output_dim
    2
    """
    header, arrays = read_npz(path)
    if header.get("kind") != "model":
        raise FileFormatError(
            f"{path} holds no model but a {header.get('kind')}; a checkpoint is read by "
            "fit(..., resume=path)"
        )
    given = (
        {activation.name: activation} if isinstance(activation, Activation) else activation or {}
    )
    if not (isinstance(given, Mapping) and all(isinstance(a, Activation) for a in given.values())):
        raise InputError(
            f"activation is {activation!r}; give an Activation, or a dictionary of them by name"
        )
    config, own = header.get("config"), _by_name(classes)
    _refuse_missing(path, header.get("classes", []), own)
    for name in sorted(_custom(config)):
        if name not in given:
            raise InputError(
                f"{path} uses the activation {name!r}, which is not built in"
                + (f" (given: {', '.join(given)})" if given else "")
                + "; pass load(path, activation=Activation(...)) with that name"
            )
    try:
        known = Known(given, offered(Layer, *SETTINGS) | own)
        model = _decode_layer(
            config, {key.removeprefix("params/"): a for key, a in arrays.items()}, known
        )
    except Exception as error:
        raise FileFormatError(
            f"{path} does not describe a model: {error}; it is damaged or was edited, save the "
            "model again"
        ) from error
    return model if device == "cpu" else model.to(device)


def load_notes(path: str | Path) -> dict[str, Any]:
    """Return the notes that were saved with a model.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    dict
        Empty if there are none.

    Raises
    ------
    FileNotFoundError, FileFormatError
        As `load`.

    Examples
    --------
    >>> import tempfile, os, pyidl
    >>> path = os.path.join(tempfile.mkdtemp(), "model.npz")
    >>> pyidl.save(path, pyidl.Linear(3, 2), notes={"classes": ["cat", "dog"]})
    >>> pyidl.load_notes(path)
    {'classes': ['cat', 'dog']}
    """
    notes = read_npz(path)[0].get("notes", {})
    if not isinstance(notes, dict):
        raise FileFormatError(
            f"the notes in {path} are no dictionary; the file is damaged or was edited, save the "
            "model again"
        )
    return notes


# ----------------------------------------------------------------------- models in JSON


@dataclass(frozen=True)
class Known:
    """What the names in a file stand for."""

    activations: Mapping[str, Activation]
    classes: Mapping[str, type[Any]]

    def of(self, name: Any, *kinds: type) -> type[Any]:
        """The class of that name, if it is one of these kinds."""
        found = self.classes.get(name)
        if found is None or not issubclass(found, kinds):
            what = "layer" if kinds == (Layer,) else "class"
            raise InputError(f"there is no {what} {name!r}")
        return found


def _by_name(classes: Any) -> dict[str, type[Any]]:
    """The caller's own classes by name, each of them such that files may hold it."""
    cure = "give the classes themselves, in a tuple: classes=(MyLayer,)"
    if not isinstance(classes, Iterable):
        raise InputError(f"classes is {classes!r}; {cure}")
    found: dict[str, type[Any]] = {}
    for cls in classes:
        if not isinstance(cls, type):
            raise InputError(f"classes holds {cls!r}; {cure}")
        _admit(cls, found)
    return found


def _refuse_missing(path: Any, needed: Any, own: Mapping[str, type]) -> None:
    """Refuse a file with classes of somebody's own that were not given."""
    if not (isinstance(needed, list) and all(isinstance(name, str) for name in needed)):
        raise FileFormatError(
            f"the classes in {path} are no list of names; the file is damaged or was edited, save "
            "the model again"
        )
    missing = ", ".join(name for name in needed if name not in own)
    if missing:
        several = ", ".join(needed) if len(needed) > 1 else f"{needed[0]},"
        raise InputError(
            f"{path} holds {missing}, which pyidl does not have; define or import what the model "
            f"was saved with, and write load({os.fspath(path)!r}, classes=({several}))"
        )


def _admit(cls: type[Any], own: dict[str, type[Any]]) -> str:
    """The name under which a file holds a class.

    One of the caller's own is entered in `own`. A name stands for one class: nothing
    else says which is meant.
    """
    name, kinds = cls.__name__, (Layer, *SETTINGS)
    known = offered(*kinds)
    if known.get(name) is cls:
        return name
    if not issubclass(cls, kinds):
        raise InputError(
            f"{name} cannot be saved; files hold {', '.join(known)}, the built-in activations, and "
            "layers, cells, constraints and solvers of your own; arrays are saved as parameters"
        )
    if not issubclass(cls, Composite) and not dataclasses.is_dataclass(cls):
        raise InputError(
            f"{name} cannot be saved, since it is no dataclass; write its options as fields, under "
            "@dataclass(eq=False, repr=False) for a layer, @dataclass(frozen=True) for others"
        )
    if name in known or own.setdefault(name, cls) is not cls:
        other = "a class of pyidl" if name in known else "another class of yours"
        raise InputError(
            f"{name} is also the name of {other}; rename it, since a file says names only"
        )
    return name


def _encode(value: Any, own: dict[str, type[Any]]) -> Any:
    """A configuration as JSON.

    Classes by name, built-in activations by name, numbers and strings as they are. The
    caller's own classes are entered in `own`.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return [_encode(item, own) for item in value]
    if isinstance(value, type):
        return {"class": "class", "name": _admit(value, own)}
    if isinstance(value, Blocks):
        return {
            "class": "Blocks",
            "blocks": [[_encode(b.activation, own), b.stop - b.start] for b in value.blocks],
        }
    if isinstance(value, Activation):
        built_in = activations.named(value.name) is value
        return {"class": "Activation" if built_in else "custom activation", "name": value.name}
    if isinstance(value, Pattern):
        return {"class": "Pattern", **{key: _encode_mask(getattr(value, key)) for key in "ABCD"}}
    if isinstance(value, Layer):
        raise InputError(
            f"{type(value).__name__} is a layer among the options of another; what holds layers is "
            "a Composite, whose parts are saved"
        )
    return _encode_fields(value, own)


def _encode_layer(layer: Layer, own: dict[str, type[Any]]) -> dict[str, Any]:
    """A layer, and those that it is made of, without their parameters."""
    if not isinstance(layer, Composite):
        return _encode_fields(layer, own)
    parts = {key: _encode_layer(part, own) for key, part in layer.parts.items()}
    encoded = {"class": _admit(type(layer), own), "parts": parts}
    options = {key: _encode(value, own) for key, value in layer.options.items()}
    return encoded | ({"options": options} if options else {})


def _encode_fields(value: Any, own: dict[str, type[Any]]) -> dict[str, Any]:
    """The fields of a dataclass.

    Beside them it may have nothing, since a file would lose it.
    """
    cls, encoded = type(value), {"class": _admit(type(value), own)}
    names = [f.name for f in dataclasses.fields(value) if f.init]
    lost = [
        key
        for key in getattr(value, "__dict__", {})
        if not (key[0] == "_" or key in names or hasattr(cls, key))
    ]
    if lost:
        raise InputError(
            f"{cls.__name__} cannot be saved, since {', '.join(lost)} would be lost; make fields "
            "of the dataclass of what it needs, and compute the rest in _validate, with a name _..."
        )
    for key in names:
        try:
            encoded[key] = _encode(getattr(value, key), own)
        except InputError as error:
            raise InputError(f"{cls.__name__}.{key}: {error}") from None
    return encoded


def _encode_mask(mask: np.ndarray | None) -> Any:
    """Shape, and the bits in hexadecimal."""
    return None if mask is None else [*mask.shape, np.packbits(mask).tobytes().hex()]


def _decode_mask(value: Any) -> np.ndarray | None:
    if value is None:
        return None
    rows, columns, bits = value
    return (
        np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8), count=rows * columns)
        .reshape(rows, columns)
        .astype(bool)
    )


def _custom(config: Any) -> set[str]:
    """Names of the activations that are not built in."""
    if isinstance(config, list):
        return set().union(*map(_custom, config))
    if not isinstance(config, dict):
        return set()
    own = {str(config.get("name"))} if config.get("class") == "custom activation" else set()
    return own | set().union(*map(_custom, config.values()))


def _decode(value: Any, known: Known) -> Any:
    """The inverse of `_encode`, for everything but layers."""
    if isinstance(value, list):
        return tuple(_decode(item, known) for item in value)
    if not isinstance(value, dict):
        return value
    fields = {key: v for key, v in value.items() if key != "class"}
    match value.get("class"):
        case "Blocks":
            return Blocks(*((_decode(a, known), width) for a, width in fields["blocks"]))
        case "Pattern":
            return Pattern(**{key: _decode_mask(mask) for key, mask in fields.items()})
        case "custom activation":
            return known.activations[fields["name"]]
        case "class":
            return known.of(fields["name"], Layer, *SETTINGS)
        case "Activation":
            return as_activation(fields["name"])
        case name:
            options = {key: _decode(v, known) for key, v in fields.items()}
            return known.of(name, *SETTINGS)(**options)


def _decode_layer(config: Any, params: Mapping[str, np.ndarray], known: Known) -> Layer:
    """A layer from its configuration and its parameters."""
    cls = known.of(config["class"], Layer)
    if issubclass(cls, Composite):
        owner: dict[str, dict[str, np.ndarray]] = {name: {} for name in config["parts"]}
        for key, a in params.items():
            part, _, name = key.partition(".")
            owner[part][name] = a
        parts = {
            name: _decode_layer(part, owner[name], known) for name, part in config["parts"].items()
        }
        options = {key: _decode(value, known) for key, value in config.get("options", {}).items()}
        whole: Layer = cls.of({**parts, **options})
        return whole
    options = {f.name: f.default for f in dataclasses.fields(cls)}
    said = {key: value for key, value in config.items() if key != "class"}
    missing = dataclasses.MISSING in (options | said).values()
    if missing or not set(said) <= set(options):
        raise InputError(
            f"{config['class']} has the options {sorted(options)}, the file says {sorted(said)}"
        )
    chosen = {key: _decode(value, known) for key, value in said.items()}
    model: Layer = cls._with(options | chosen, params)
    return model


# --------------------------------------------------------------------- arrays in a file


def _path(path: Any) -> Path:
    expect("path", path, (str, os.PathLike), "the name of a file is needed, a str or a Path")
    return Path(path)


def write_npz(
    path: str | Path, arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]
) -> None:
    """Write arrays and a JSON header atomically.

    Equal contents give equal files, byte for byte.

    Raises
    ------
    InputError
        If an array holds objects, which only pickle could write.
    OSError
        If the file cannot be written; an older file of that name is then untouched.
    """
    path = _path(path)
    text = json.dumps({"format": FORMAT, "version": VERSION, **header}, allow_nan=True).encode()
    members = {"header": np.frombuffer(text, np.uint8), **arrays}
    for key, a in members.items():
        if a.dtype.hasobject:
            raise InputError(
                f"array {key!r} holds objects, which a file without pickle cannot hold"
            )
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for key, a in members.items():
            with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(a), allow_pickle=False)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when it is complete.

    Until then, and after an error, what was there before stays. A link stays too, and
    leads to the new file. A device or a pipe cannot be replaced, and is written to.

    What a process that was killed has left of the same file is removed. A lock, which
    ends with its process, says whether it still writes; where there are no locks (on
    Windows, on some networks), nothing is removed.
    """
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            yield file
        return
    path = path.resolve()
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.tmp"):
        with suppress(OSError), open(left, "r+b") as file:
            # Its writer may have begun anew meanwhile, with another file of this name.
            if _lock(file, wait=False) and os.path.samestat(os.fstat(file.fileno()), left.stat()):
                left.unlink()
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with _new_locked(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if os.name == "nt":  # where an open file cannot be renamed
                file.close()
            os.replace(temporary, path)  # while it is locked
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _new_locked(path: Path) -> Iterator[BinaryIO]:
    """A new file that is locked, if there are locks."""
    while True:
        with open(path, "xb") as file:
            _lock(file, wait=True)
            if path.exists():  # another process may have removed it before it was locked
                yield file
                return


def _lock(file: BinaryIO, wait: bool) -> bool:
    """Whether this process now has the lock of a file, until it closes it or ends."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):
        return False
    return True


def read_npz(path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read ``(header, arrays)``, after checking that `write_npz` writes such files.

    Members are stored, or deflated as ``np.savez_compressed`` does, which unfolds a
    file to 1,032 times its size at most; other compressions, which have no such bound,
    are refused. Every member has a checksum, and no name stands there twice.

    Raises
    ------
    FileNotFoundError, PermissionError, IsADirectoryError
        From the operating system.
    FileFormatError
        If the file is damaged, foreign, or newer than this version.
    """
    with open(_path(path), "rb") as file:  # not True, which `open` takes for the standard output
        try:
            with zipfile.ZipFile(file) as archive:
                arrays = _once(
                    (info.filename.removesuffix(".npy"), _member(archive, info))
                    for info in archive.infolist()
                )
        except Exception as error:
            raise FileFormatError(
                f"{path} is not a complete .npz file ({error}); it is damaged, or was not written "
                "by pyidl: save it again"
            ) from error
    try:
        header = json.loads(arrays.pop("header").tobytes().decode(), object_pairs_hook=_once)
        if header["format"] != FORMAT or not isinstance(header["version"], int):
            raise ValueError(f"format {header['format']!r}, version {header['version']!r}")
    except Exception as error:
        raise FileFormatError(
            f"{path} has no header of pyidl ({type(error).__name__}: {error}); it was not written "
            "by pyidl"
        ) from error
    if header["version"] > VERSION:
        raise FileFormatError(
            f"{path} has format version {header['version']}, this pyidl reads up to {VERSION}; "
            "upgrade pyidl"
        )
    return header, arrays


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array; its checksum is verified when its last byte has been read."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise FileFormatError(
            f"member {info.filename!r} is compressed by another method than deflation"
        )
    with archive.open(info) as member:
        array = np.lib.format.read_array(member, allow_pickle=False)
        if member.read(1):
            raise FileFormatError(f"member {info.filename!r} has bytes after its array")
    return np.asarray(array)


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary; a name that stands twice is refused: nothing says which counts."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise FileFormatError(f"the name {name!r} stands there twice")
        found[name] = value
    return found
