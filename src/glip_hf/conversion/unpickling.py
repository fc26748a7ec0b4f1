# Copyright 2026 The glip_hf authors. MIT licence.
"""Reads PyTorch pickles as data: nothing named in the file is ever imported or called.

This is the fallback for checkpoints that `torch.load(weights_only=True)` refuses because harmless
objects (a yacs CfgNode, an argparse.Namespace, a numpy number) lie beside the weights. What the
pickle names is replaced by code of this file: tensors by `TensorRecord`, instances of unknown classes
by `Inert` containers. A *call* of anything that is not on the allow-list below is refused, and so is
the mere mention of a module that runs code.
"""

import io
import math
import os
import pickle
import struct
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

import torch
from torch import Tensor


class UnsafePickleError(ValueError):
    """The pickle would execute code on loading; the message names the global it would call."""


class StorageRecord(NamedTuple):
    """A storage named by a pickle: dtype of its tensors, key in the file, number of elements."""

    dtype: torch.dtype
    key: str
    numel: int


class TensorRecord(NamedTuple):
    """A tensor named by a pickle, not read yet."""

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _InertType(type):
    """Class of the stand-in classes: calling one, as REDUCE does, is refused."""

    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise UnsafePickleError(
            f"The pickle wants to call {cls.__module__}.{cls.__qualname__} on loading. It was refused and nothing was "
            "executed. If the file is yours, save its weights alone where it was made: "
            "torch.save({'model': checkpoint['model']}, path)."
        )

    def __setattr__(cls, name: str, value: Any) -> NoReturn:
        raise UnsafePickleError(f"The pickle wants to change the class {cls.__module__}.{cls.__qualname__}.")


class Inert(metaclass=_InertType):
    """Stands for an instance of a class the reader does not know: keeps the contents, does nothing.

    Attributes (set by the pickle): `items` (as a dict), `elements` (as a list or set) and `state`.
    """

    __slots__ = ("elements", "items", "state")
    # With this attribute the opcodes INST and OBJ call the class instead of allocating it:
    # refused, see above.
    __getinitargs__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        instance = object.__new__(cls)
        for name, value in (("items", {}), ("elements", list(args)), ("state", None)):
            object.__setattr__(instance, name, value)
        return instance

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise UnsafePickleError(f"The pickle wants to set the attribute {name!r} of an inert object.")

    def __setstate__(self, state: Any) -> None:
        object.__setattr__(self, "state", state)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        self.elements.append(value)

    add = append

    def extend(self, values: Iterable[Any]) -> None:
        self.elements.extend(values)


class _Function:
    """A callable of ours in place of the global a pickle names; BUILD cannot alter it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise UnsafePickleError(f"The pickle wants to set {name!r} of a function.")


class _Mapping(dict):
    """Stands for OrderedDict and its kin; attributes such as `_metadata` are dropped."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Ignores the attributes."""


def _storage_dtypes() -> dict[str, torch.dtype]:
    names = {
        "Float": torch.float32,
        "Double": torch.float64,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }
    return {f"{name}Storage": dtype for name, dtype in names.items()} | {"UntypedStorage": torch.uint8}


_STORAGES = _storage_dtypes()


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> TensorRecord:
    """`torch._utils._rebuild_tensor(_v2, _v3)`; v3 ends with the dtype of an untyped storage."""
    if not isinstance(storage, StorageRecord):
        raise pickle.UnpicklingError(f"a tensor without storage: {type(storage).__name__}")
    shape, stride = tuple(shape), tuple(stride)
    if not all(type(n) is int and n >= 0 for n in (offset, *shape, *stride)) or len(shape) != len(stride):
        raise pickle.UnpicklingError(f"a tensor with offset {offset}, shape {shape} and stride {stride}")
    if len(rest) > 2 and isinstance(rest[2], torch.dtype):
        storage = storage._replace(dtype=rest[2], numel=storage.numel // rest[2].itemsize)
    return TensorRecord(storage, offset, shape, stride)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _reconstruct(cls: Any, base: Any = None, state: Any = None) -> Any:
    """`copyreg._reconstructor`: an instance of a plain class in pickle protocols 0 and 1."""
    return _new(cls)


def _new(cls: Any, *args: Any) -> Any:
    """`copyreg.__newobj__`."""
    if not isinstance(cls, _InertType):
        raise pickle.UnpicklingError(f"cannot make an object of {cls!r}")
    return cls.__new__(cls, *args)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """`_codecs.encode`, how protocol 2 writes bytes."""
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise UnsafePickleError(f"The pickle wants to call _codecs.encode with the codec {encoding!r}. It was refused.")
    return text.encode(encoding)


def _mapping(*args: Any) -> _Mapping:
    """OrderedDict, defaultdict (the factory is dropped) and Counter."""
    mapping = _Mapping()
    for argument in args:
        if isinstance(argument, dict | list | tuple):
            mapping.update(argument)
    return mapping


def _collection(kind: type) -> Callable[..., Any]:
    def build(*args: Any) -> Any:
        # An integer argument would allocate that many bytes.
        if len(args) > 1 or any(not isinstance(argument, list | tuple | set | bytes) for argument in args):
            raise pickle.UnpicklingError(f"{kind.__name__} of {args!r:.80}")
        return kind(*args)

    return build


def _inert_call(name: str) -> Callable[..., Inert]:
    """Keeps a call of a harmless constructor as data."""
    cls = _stand_in("inert", name)
    return lambda *args: cls.__new__(cls, *args)


def _stand_in(module: str, name: str) -> type:
    return _InertType(name, (Inert,), {"__module__": module, "__qualname__": name, "__slots__": ()})


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"torch._utils._rebuild_tensor{suffix}": _tensor for suffix in ("", "_v2", "_v3")},
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": _reconstruct,
    "copyreg.__newobj__": _new,
    **{f"collections.{name}": _mapping for name in ("OrderedDict", "defaultdict", "Counter")},
    **{f"builtins.{kind.__name__}": _collection(kind) for kind in (set, frozenset, list, tuple, dict, bytearray)},
    "builtins.complex": complex,
}
"""The allow-list: what a pickle may call, each name answered by a function of ours."""

_DATA_CONSTRUCTORS = (
    "builtins.slice",
    "builtins.range",
    "collections.deque",
    "datetime.date",
    "datetime.datetime",
    "datetime.timedelta",
    "decimal.Decimal",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "torch.Size",
    "torch.device",
    "types.SimpleNamespace",
)
"""Calls that are kept as inert records: plain values that travel beside the weights."""

_PLAIN_TYPES = tuple(f"builtins.{name}" for name in ("object", "int", "float", "str", "bytes", "bool", "type"))
"""Built-in types that may be named (base of a class, factory of a defaultdict), not called."""

_CODE_MODULES = frozenset(
    """
    os posix nt sys subprocess builtins importlib runpy pty ctypes _ctypes socket shutil code codeop
    types inspect marshal pickle _pickle cPickle shelve webbrowser multiprocessing threading _thread
    signal operator _operator functools _functools pip pydoc timeit pdb bdb cProfile profile trace
    asyncio tempfile glob platform urllib http requests torch.hub torch.jit torch.package
    torch.serialization torch.utils.cpp_extension
    """.split()
)
"""Modules no checkpoint has a reason to name: refused when named, for a clearer message."""


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickles with the allow-list above; collects the storages it meets in `storages`."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="latin1")
        self.storages: dict[str, StorageRecord] = {}
        self._stand_ins: dict[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        # Protocols 0 to 2 use the names of Python 2, as the standard unpickler knows them too.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        path = f"{module}.{name}"
        if path in _FUNCTIONS:
            return _Function(_FUNCTIONS[path])
        if module in ("torch", "torch.cuda", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if path in _DATA_CONSTRUCTORS:
            return _Function(_inert_call(path))
        if path not in _PLAIN_TYPES and (module.split(".")[0] in _CODE_MODULES or module in _CODE_MODULES):
            raise UnsafePickleError(
                f"The pickle names {path}, which could execute code on loading. It was refused and nothing was "
                "executed."
            )
        return self._stand_ins.setdefault((module, name), _stand_in(module, name))

    def persistent_load(self, pid: Any) -> Any:
        """A storage: ('storage', dtype, key, location, numel) and, in legacy files, a view."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] not in ("storage", b"storage"):
            raise pickle.UnpicklingError(f"an unknown persistent id: {pid!r:.80}")
        dtype, key, numel = pid[1], str(pid[2]), pid[4]
        if not isinstance(dtype, torch.dtype) or type(numel) is not int or numel < 0:
            raise pickle.UnpicklingError(f"a storage of type {dtype!r} with {numel!r} elements")
        if len(pid) == 6 and pid[5] is not None:
            raise pickle.UnpicklingError("a storage that is a view of another, as only PyTorch before 0.4 wrote")
        return self.storages.setdefault(key, StorageRecord(dtype, key, numel))


class PickledCheckpoint:
    """The object in a `.pth` file, zip or legacy format, with tensors read on demand.

    Args:
        path: the file.

    Attributes:
        root: the unpickled object, tensors as `TensorRecord`.

    Raises:
        UnsafePickleError: if the pickle would execute code.
        pickle.UnpicklingError, EOFError, zipfile.BadZipFile: if the file is damaged or something
            else.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._offsets: dict[str, int] = {}
        with self.path.open("rb") as file:
            self._archive = file.read(4) == b"PK\x03\x04"
        self.root = self._read_zip() if self._archive else self._read_legacy()

    def _read_zip(self) -> Any:
        with zipfile.ZipFile(self.path) as archive:
            names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
            if len(names) != 1:
                raise pickle.UnpicklingError("not a PyTorch archive: it holds no data.pkl")
            self._folder = names[0].rpartition("data.pkl")[0]
            order = f"{self._folder}byteorder"
            if order in archive.namelist() and archive.read(order).decode() != sys.byteorder:
                raise pickle.UnpicklingError(f"written on a machine that is not {sys.byteorder}-endian")
            return RestrictedUnpickler(io.BytesIO(archive.read(names[0]))).load()

    def _read_legacy(self) -> Any:
        """Five pickles (magic, protocol, system, object, storage keys), then count and raw data of
        each storage.
        """
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            magic = RestrictedUnpickler(file).load()
            if magic != 0x1950A86A20F9469CFC6C:
                raise pickle.UnpicklingError("a pickle, but not one that torch.save wrote")
            RestrictedUnpickler(file).load()
            system = RestrictedUnpickler(file).load()
            if isinstance(system, dict) and system.get("little_endian", True) != (sys.byteorder == "little"):
                raise pickle.UnpicklingError(f"written on a machine that is not {sys.byteorder}-endian")
            unpickler = RestrictedUnpickler(file)
            root = unpickler.load()
            for key in RestrictedUnpickler(file).load():
                storage = unpickler.storages[str(key)]
                header = file.read(8)
                if len(header) != 8 or struct.unpack("<q", header)[0] != storage.numel:
                    raise pickle.UnpicklingError(f"the storage {key} is damaged or cut off")
                self._offsets[storage.key] = file.tell()
                if file.seek(storage.numel * storage.dtype.itemsize, os.SEEK_CUR) > size:
                    raise pickle.UnpicklingError(f"the storage {key} is cut off")
        return root

    def _raw(self, storage: StorageRecord) -> bytearray:
        length = storage.numel * storage.dtype.itemsize
        if self._archive:
            with zipfile.ZipFile(self.path) as archive:
                member = archive.getinfo(f"{self._folder}data/{storage.key}")
                if member.file_size != length:
                    raise pickle.UnpicklingError(f"the storage {storage.key} is damaged or cut off")
                return bytearray(archive.read(member))
        with self.path.open("rb") as file:
            file.seek(self._offsets[storage.key])
            return bytearray(file.read(length))

    def tensor(self, record: TensorRecord) -> Tensor:
        """Reads one tensor; contiguous, with memory of its own."""
        storage = record.storage
        last = record.offset + sum((n - 1) * step for n, step in zip(record.shape, record.stride, strict=True))
        if 0 in record.shape:
            return torch.empty(record.shape, dtype=storage.dtype)
        # The second test keeps a stride of 0 from asking for more memory than the file has bytes.
        if last >= storage.numel or math.prod(record.shape) > storage.numel:
            raise pickle.UnpicklingError(f"a tensor of shape {record.shape} exceeds its storage {storage.key}")
        flat = torch.frombuffer(self._raw(storage), dtype=storage.dtype)
        return flat.as_strided(record.shape, record.stride, record.offset).clone(memory_format=torch.contiguous_format)


__all__ = ["Inert", "PickledCheckpoint", "RestrictedUnpickler", "TensorRecord", "UnsafePickleError"]
