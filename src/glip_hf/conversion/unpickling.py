# Copyright 2026 The glip_hf authors. MIT licence.
"""Reads PyTorch pickles as data: nothing that a file names is ever imported or called.

`torch.load` with an unpickler of ours. Beside the weights, training leaves objects (a yacs CfgNode, an
argparse.Namespace, numpy scalars) that `weights_only=True` refuses; here a pickle's names are answered by code of this
file: tensors are rebuilt by PyTorch after a check of their bounds, instances of unknown classes become `Inert`
containers. A *call* of anything that is not on the allow-list is refused, and so is the mention of a module that runs
code.

Time and memory are bounded too: by `MAX_PICKLE_BYTES`, by the size of the file for storages, and by what may be a key,
since a few bytes can describe a tuple that takes forever to hash, compare or format.
"""

import gc
import os
import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterable
from functools import partial
from types import SimpleNamespace
from typing import Any, BinaryIO, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.storage import TypedStorage

# Largest pickle that is read, without the tensors it names and long texts; GLIP-L's with its optimizer has 0.6 MB. Each
# byte can make an object of 64, and takes a microsecond.
MAX_PICKLE_BYTES = 2 << 20
# With long texts, which are skipped: mmengine keeps all values that were logged, 20 bytes for each
MAX_PICKLE_FILE = 256 << 20
LONG_TEXT = 1 << 14


class UnsafePickleError(ValueError):
    """The pickle would execute code on loading; the message names the global it would call."""


class _InertType(type):
    """Class of the stand-in classes: calling one, as REDUCE does, is refused."""

    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise UnsafePickleError(
            f"The pickle wants to call {cls.__module__:.80}.{cls.__qualname__:.80} on loading. It was refused and "
            "nothing was executed. If the file is yours, save its weights alone where it was made: "
            "torch.save({'model': checkpoint['model']}, path)."
        )


class Inert(metaclass=_InertType):
    """Stands for an instance of a class that the reader does not know: keeps the contents, does nothing.

    Attributes (set by the pickle): `items` (as a dict), `elements` (as a list or set) and `state`.
    """

    __slots__ = ("elements", "items", "state")
    # With this attribute the opcodes INST and OBJ call the class instead of allocating it: refused, see above.
    __getinitargs__ = ()

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        instance = object.__new__(cls)
        instance.items, instance.elements, instance.state = _Mapping(), list(args), None
        return instance

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        self.elements.append(value)

    add = append

    def extend(self, values: Iterable[Any]) -> None:
        self.elements.extend(values)


class _RecordType(_InertType):
    """Class of the stand-ins for `_DATA_MODULES`: what a call was given is kept."""

    def __call__(cls, *args: Any) -> Inert:
        return cls.__new__(cls, *args)


class _Function:
    """A callable of ours in place of the global that a pickle names."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def _key(value: Any) -> Any:
    """A key of a dictionary or an element of a set: text, a number, or a flat tuple of them."""
    for part in value if type(value) is tuple and len(value) < 16 else (value,):
        if type(part) not in (str, bytes, int, float, bool, type(None)) or (type(part) is int and abs(part) >= 1 << 60):
            raise pickle.UnpicklingError("a key that is neither text nor a number")
    return value


class _Mapping(dict):
    """Stands for dict, OrderedDict and its kin; attributes such as `_metadata` are dropped."""

    __slots__ = ()

    def __init__(self, pairs: Any = ()) -> None:
        for key, value in pairs.items() if isinstance(pairs, dict) else pairs:
            self[key] = value

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(_key(key), value)

    def __setstate__(self, state: Any) -> None:
        """Ignores the attributes."""


class _UntypedStorage(NamedTuple):
    """Names `torch.UntypedStorage`, whose constructor takes an address and must not be called."""

    dtype: torch.dtype = torch.uint8


# Messages below show no argument of a pickle: a few bytes can describe an object that takes forever to format.


def _tensor(rebuild: Callable[..., Tensor], storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Tensor:
    """`torch._utils._rebuild_tensor(_v2, _v3)`, which trusts its arguments; v3 gives the dtype apart."""
    valid = isinstance(storage, TypedStorage) and isinstance(shape, tuple) and isinstance(stride, tuple)
    if (
        not valid
        or not len(shape) == len(stride) <= 64
        or not all(type(n) is int and n >= 0 for n in (offset, *shape, *stride))
    ):
        raise pickle.UnpicklingError("a tensor without a valid storage, offset, shape or stride")
    dtype = next((value for value in rest if isinstance(value, torch.dtype)), storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if 0 not in shape and (last + 1) * dtype.itemsize > storage._untyped_storage.nbytes():
        raise pickle.UnpicklingError("a tensor that exceeds its storage")
    return rebuild(storage, offset, shape, stride, *rest)


def _with_attributes(function: Any, cls: Any, arguments: Any, state: Any) -> Any:
    """`torch._tensor._rebuild_from_type_v2`: a tensor with Python attributes, which are dropped."""
    if not isinstance(function, _Function) or getattr(function.function, "func", None) is not _tensor:
        raise pickle.UnpicklingError("a tensor of an unknown kind")
    return function(*arguments)


def _new(cls: Any, *args: Any) -> Any:
    """`copyreg.__newobj__`."""
    if not isinstance(cls, _InertType):
        raise pickle.UnpicklingError("an object of something that is not a class")
    return cls.__new__(cls, *args)


def _attribute(owner: Any, *_: Any) -> Inert:
    """`getattr`, by which mmengine's HistoryBuffer names its methods: a record, nothing is looked up."""
    if not isinstance(owner, _RecordType):
        raise UnsafePickleError("The pickle wants to call builtins.getattr. It was refused and nothing was executed.")
    return Inert.__new__(_SKIPPED)


def _encode(text: Any, encoding: Any = "latin1") -> bytes | Inert:
    """`_codecs.encode`, how protocol 2 writes bytes."""
    if isinstance(text, Inert) and type(text) is _SKIPPED:
        return text
    if not isinstance(text, str) or not isinstance(encoding, str):
        raise pickle.UnpicklingError("bytes that are not encoded text")
    if encoding not in ("latin1", "latin-1", "utf-8", "ascii"):
        raise UnsafePickleError(
            f"The pickle wants to call _codecs.encode with the codec {encoding[:20]!r}. It was refused."
        )
    return text.encode(encoding)


def _mapping(*args: Any) -> _Mapping:
    """OrderedDict, defaultdict (the factory is dropped) and Counter."""
    return _Mapping(*(argument for argument in args if isinstance(argument, dict | list | tuple)))


def _collection(kind: type, *args: Any) -> Any:
    if len(args) == 1 and type(args[0]) is _SKIPPED:
        return args[0]
    # An integer argument would allocate that many bytes.
    if len(args) > 1 or any(not isinstance(argument, list | tuple | set | bytes) for argument in args):
        raise pickle.UnpicklingError(f"{kind.__name__} of something other than a collection")
    return kind(*args) if kind in (list, tuple, bytearray) else kind(map(_key, *args))


def _stand_in(module: str, name: str, kind: type[_InertType] = _InertType) -> type:
    return kind(name, (Inert,), {"__module__": module, "__qualname__": name, "__slots__": ()})


_SKIPPED = _stand_in("builtins", "str")  # class of what stands for a long text or an attribute
# Packages whose objects lie beside the weights of mmdetection: calls of theirs are kept as inert records
_DATA_MODULES = frozenset({"mmengine", "mmcv", "mmdet"})

_COLLECTIONS = (set, frozenset, list, tuple, bytearray)
# The allow-list: what a pickle may call, each name answered by a function of ours
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": partial(_tensor, torch._utils._rebuild_tensor),
    "torch._utils._rebuild_tensor_v2": partial(_tensor, torch._utils._rebuild_tensor_v2),
    "torch._utils._rebuild_tensor_v3": partial(_tensor, torch._utils._rebuild_tensor_v3),
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
    "_codecs.encode": _encode,
    "copyreg._reconstructor": lambda cls, *_: _new(cls),  # a plain class in pickle protocols 0 and 1
    "copyreg.__newobj__": _new,
    **{f"collections.{name}": _mapping for name in ("OrderedDict", "defaultdict", "Counter")},
    "builtins.dict": _mapping,
    **{f"builtins.{kind.__name__}": partial(_collection, kind) for kind in _COLLECTIONS},
    "builtins.complex": complex,
}

# Calls that are kept as inert records: values that travel beside the weights, tensors that are not plain and dense
_DATA_CONSTRUCTORS = frozenset(
    """
    builtins.slice builtins.range collections.deque datetime.date datetime.datetime datetime.timedelta decimal.Decimal
    numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct numpy.core.multiarray.scalar
    numpy._core.multiarray.scalar numpy.dtype pathlib.Path pathlib.PosixPath pathlib.PurePosixPath pathlib.WindowsPath
    pathlib._local.Path pathlib._local.PosixPath pathlib._local.PurePosixPath pathlib._local.WindowsPath
    torch.Size torch.device types.SimpleNamespace
    torch.serialization._get_layout torch._utils._rebuild_sparse_tensor torch._utils._rebuild_qtensor
    torch._utils._rebuild_nested_tensor torch._utils._rebuild_meta_tensor_no_storage
    torch._utils._rebuild_device_tensor_from_numpy torch._utils._rebuild_device_tensor_from_cpu_tensor
    torch._utils._rebuild_wrapper_subclass
    """.split()
)

# Built-in types that may be named (base of a class, factory of a defaultdict), not called
_PLAIN_TYPES = frozenset(f"builtins.{name}" for name in ("object", "int", "float", "str", "bytes", "bool", "type"))

# Modules that no checkpoint has a reason to name: refused when named, for a clearer message
_CODE_MODULES = frozenset(
    """
    os posix nt sys subprocess builtins importlib runpy pty ctypes _ctypes socket shutil code codeop
    types inspect marshal pickle _pickle cPickle shelve webbrowser multiprocessing threading _thread
    signal operator _operator functools _functools pip pydoc timeit pdb bdb cProfile profile trace
    asyncio tempfile glob platform urllib http requests torch.hub torch.jit torch.package
    torch.serialization torch.utils.cpp_extension
    """.split()
)


class _Bounded:
    """A file of which at most `MAX_PICKLE_BYTES` are read, beside what is skipped."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left, self.skipping = file, MAX_PICKLE_BYTES, False

    def take(self, size: int) -> None:
        self._left -= 1 if self.skipping else size
        if self._left < 0:
            raise pickle.UnpicklingError(f"a pickle of more than {MAX_PICKLE_BYTES >> 20} MB (MAX_PICKLE_BYTES)")

    def read(self, size: int) -> bytes:
        self.take(size)
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline(self._left + 1)
        self.take(len(line))
        return line


class RestrictedUnpickler(pickle._Unpickler):
    """Unpickles with the allow-list above.

    In Python, since that in C asks for as much memory as the largest number that a file gives to an object.
    """

    largest_storage = 1 << 62  # in bytes; that of a file is no larger than the file
    has_records = False  # whether an object of `_DATA_MODULES` was named: only their attributes may be asked for
    dispatch = pickle._Unpickler.dispatch.copy()
    for _opcode in (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.NEWOBJ_EX):
        del dispatch[_opcode[0]]  # the first allocates what it is told; of later protocols than that of `torch.save`

    def __init__(self, file: BinaryIO, **_: Any) -> None:
        self._bounded = _Bounded(file)
        super().__init__(self._bounded, encoding="latin1")

    def _changed(self) -> Any:
        """The object on the stack that an opcode changes: a container of ours, neither a tensor nor a class."""
        if not isinstance(self.stack[-1], Inert | _Mapping):
            kind = type(self.stack[-1]).__name__
            raise UnsafePickleError(f"The pickle wants to change an object of class {kind:.80}. It was refused.")
        return self.stack[-1]

    def _build(self) -> None:
        state = self.stack.pop()
        self._changed().__setstate__(state)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._changed()[key] = value

    def _set_items(self) -> None:
        items = self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self._changed()[key] = value

    def _add_items(self) -> None:
        items = self.pop_mark()
        target = self.stack[-1] if isinstance(self.stack[-1], set) else self._changed()
        for item in items:
            target.add(_key(item))

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append(_Mapping(zip(items[::2], items[1::2], strict=True)))

    def _binary(self, decode: Callable[[bytes], Any]) -> None:
        """Text or bytes behind their length; what is long is skipped, and something inert stands for it."""
        left = int.from_bytes(self.read(4), "little")
        if left <= LONG_TEXT:
            self.append(decode(self.read(left)))
            return
        self._bounded.skipping = True
        while left > 0:
            left -= (got := len(self.read(min(left, 1 << 20))))
            if not got:
                raise EOFError
        self._bounded.skipping = False
        self.append(Inert.__new__(_SKIPPED))

    def _charge(self, args: tuple[Any, ...]) -> None:
        """Count what a call may copy as if it stood in the file, which may name one long list a million times."""
        sized = (
            arg for arg in args if isinstance(arg, str | bytes | bytearray | list | tuple | dict | set | frozenset)
        )
        self._bounded.take(len(args) + sum(map(len, sized)))

    def _instantiate(self, cls: Any, args: tuple[Any, ...]) -> None:
        self._charge(args)
        super()._instantiate(cls, args)

    def _reduce(self) -> None:
        self._charge(self.stack[-1])
        self.load_reduce()

    def _new_object(self) -> None:
        self._charge(self.stack[-1])
        self.load_newobj()

    dispatch |= {
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _new_object,
        pickle.BUILD[0]: _build,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.ADDITEMS[0]: _add_items,
        pickle.DICT[0]: _dict,
        pickle.BINUNICODE[0]: lambda self: self._binary(lambda data: str(data, "utf-8", "surrogatepass")),
        pickle.BINBYTES[0]: lambda self: self._binary(bytes),
        pickle.EMPTY_DICT[0]: lambda self: self.append(_Mapping()),
        pickle.FROZENSET[0]: lambda self: self.append(frozenset(map(_key, self.pop_mark()))),
    }

    def find_class(self, module: str, name: str) -> Any:
        # Protocols 0 to 2 use the names of Python 2, as the standard unpickler knows them too.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        path = f"{module}.{name}"
        if path == "builtins.getattr" and self.has_records:
            return _Function(_attribute)
        if path in _FUNCTIONS:
            return _Function(_FUNCTIONS[path])
        if path in ("torch.UntypedStorage", "torch.storage.UntypedStorage"):
            return _UntypedStorage()
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if module.split(".")[0] in _DATA_MODULES:
            self.has_records = True
            return _stand_in(module, name, _RecordType)
        if path in _DATA_CONSTRUCTORS:
            stand_in = _stand_in(module, name)
            return _Function(lambda *args: stand_in.__new__(stand_in, *args))
        if path not in _PLAIN_TYPES and (module.split(".")[0] in _CODE_MODULES or module in _CODE_MODULES):
            raise UnsafePickleError(
                f"The pickle names {path:.100}, which could execute code on loading. It was refused and nothing was "
                "executed."
            )
        return _stand_in(module, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """`torch.load` sets `persistent_load`, which trusts its argument: it is checked first."""
        if name == "persistent_load":
            value = partial(_checked_load, value, self.largest_storage)
        super().__setattr__(name, value)


def _checked_load(load: Callable[[Any], Any], largest: int, pid: Any) -> Any:
    """A storage: ('storage', type, key, location, number of elements) and, in legacy files, a view, which is None."""
    known = isinstance(pid, tuple) and len(pid) in (5, 6) and pid[0] == "storage" and pid[5:] in ((), (None,))
    if not known or not isinstance(pid[2], str) or not isinstance(pid[3], str) or type(pid[4]) is not int or pid[4] < 0:
        raise pickle.UnpicklingError("an unknown persistent id: not a storage, or a view of one (PyTorch before 0.4)")
    if pid[4] > largest:
        raise pickle.UnpicklingError("a storage larger than the file")
    return load(pid)


def _load_header(file: BinaryIO, **_: Any) -> Any:
    """The parts of a legacy file around the object: two integers, a dict that PyTorch ignores, and a list of keys."""
    value = RestrictedUnpickler(file).load()
    if isinstance(value, dict):
        return {}
    if isinstance(value, int) or (isinstance(value, list) and all(isinstance(key, str) for key in value)):
        return value
    raise pickle.UnpicklingError("a pickle, but not one that torch.save wrote")


def load_pickle(path: str | os.PathLike[str], archive: bool) -> Any:
    """The object in a `.pth` file, on the CPU.

    Args:
        path: a file that is not a TorchScript archive (`torch.load` would run that).
        archive: a zip file, whose storages are mapped from it; else the legacy format, which is read whole.

    Raises:
        UnsafePickleError: if the pickle would execute code.
        Exception: of any kind if the file is damaged or something else.
    """
    size = os.path.getsize(path)
    unpickler = type("Unpickler", (RestrictedUnpickler,), {"largest_storage": size})
    module = SimpleNamespace(__name__=__name__, Unpickler=unpickler, load=_load_header)
    collecting = gc.isenabled()
    gc.disable()  # a pickle makes no garbage, and to look for it among many objects takes longer than to make them
    try:
        return torch.load(os.fspath(path), "cpu", module, weights_only=False, mmap=archive)
    finally:
        if collecting:
            gc.enable()
