"""Checkpoint files, harmless and malicious, for the conversion tests."""

import atexit
import io
import pickle
import shutil
import sys
import tempfile
import types
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from parity.architectures import recorded_config
from parity.synthetic import synthetic_state_dict
from torch import Tensor

from glip_hf import GlipConfig

RELEASED = (
    "glip_a_tiny_o365",
    "glip_tiny_model_o365",
    "glip_tiny_model_o365_goldg",
    "glip_large_model",
)
SMALL = ("small", "small_a")


def _write_vocabulary() -> Path:
    """A vocab.txt as long as BERT's (30,522 lines) with a few of its tokens at their ids."""
    folder = Path(tempfile.mkdtemp(prefix="glip-vocab-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tokens = [f"[unused{n}]" for n in range(30522)]
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: "."}
    for n, token in {**special, 1037: "a", 2235: "small", 4937: "cat", 3899: "dog"}.items():
        tokens[n] = token
    path = folder / "vocab.txt"
    path.write_text("\n".join(tokens) + "\n")
    return path


VOCAB = _write_vocabulary()


def same_bits(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Same keys in the same order, same dtypes, shapes and bytes (so that NaN equals itself)."""
    return list(a) == list(b) and all(
        a[key].dtype == b[key].dtype
        and a[key].shape == b[key].shape
        and torch.equal(
            a[key].contiguous().flatten().view(torch.uint8),
            b[key].contiguous().flatten().view(torch.uint8),
        )
        for key in a
    )


def prefixed(state: Mapping[str, Tensor], prefix: str = "module.") -> OrderedDict[str, Tensor]:
    return OrderedDict((prefix + key, tensor) for key, tensor in state.items())


def small_state(name: str = "small", seed: int = 0) -> OrderedDict[str, Tensor]:
    return synthetic_state_dict(name, seed)


def small_config(content: Mapping[str, Any]) -> GlipConfig:
    """The configuration of the small model, with or without fusion, whose weights a checkpoint holds."""
    keys = next((content[name] for name in ("model", "state_dict") if name in content), content)
    return recorded_config("small" if any(".b_attn." in key for key in keys) else "small_a")


def foreign_class(module: str, name: str, base: type = dict) -> type:
    """A class that the reader cannot import: its module exists only while it is pickled."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
    cls = type(name, (base,), {"__module__": module})
    setattr(sys.modules[module], name, cls)
    return cls


def forget_module(module: str) -> None:
    for loaded in [name for name in sys.modules if name.split(".")[0] == module.split(".")[0]]:
        del sys.modules[loaded]


def with_pickle(path: Path, data: bytes) -> Path:
    """A torch archive whose data.pkl is `data`."""
    buffer = io.BytesIO()
    torch.save({"x": torch.zeros(1)}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for member in source.infolist():
            is_pickle = member.filename.endswith("data.pkl")
            target.writestr(member, data if is_pickle else source.read(member))
    return path


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def pickled(value: Any, protocol: int = 2) -> bytes:
    return pickle.dumps(value, protocol=protocol)
