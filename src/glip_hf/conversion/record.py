# Copyright 2026 The glip_hf authors. MIT licence.
"""What both directions share: `conversion.json`, which makes the way back bit-exact."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from .weight_map import standard_order

RECORD_NAME = "conversion.json"
# Index buffers stored with other than their true values (moving averages only)
BUFFERS_NAME = "original_buffers.safetensors"
VERSION = 1


class ConversionError(ValueError):
    """The conversion cannot be done as asked; the message says what to change."""


class RecordError(ValueError):
    """The conversion record is damaged or was written by a newer version."""


@dataclass(frozen=True)
class ConversionRecord:
    """Where a converted model came from.

    Attributes:
        source_name, source_sha256, source_bytes: the file.
        wrapping: key of the dict around the weights ("model", "state_dict", "model_ema"), None if bare.
        prefix: of every key: "module.", the place of the GLIP in a fork, or "".
        dtype: of most tensors, e.g. "float32"; `dtypes`: original key -> dtype of the others.
        keys: original keys in the file's order; None if that is the standard order.
        absent_buffers: index buffers of the standard layout that the file did not hold.
        altered_buffers: index buffers that are kept in `BUFFERS_NAME`.
        layout: "original" or "mmdet": whose names the file has. All other fields but `ignored` have the original's.
        ignored: keys that were left out by `--ignore`.
        family: released architecture it was recognised as, or None.
        converted_at: date (UTC), `tools`: versions.
    """

    source_name: str
    source_sha256: str
    source_bytes: int
    wrapping: str | None
    prefix: str
    dtype: str
    dtypes: dict[str, str] = field(default_factory=dict)
    keys: list[str] | None = None
    absent_buffers: list[str] = field(default_factory=list)
    altered_buffers: list[str] = field(default_factory=list)
    layout: str = "original"
    ignored: list[str] = field(default_factory=list)
    family: str | None = None
    converted_at: str = ""
    tools: dict[str, str] = field(default_factory=dict)

    def save(self, directory: Path) -> None:
        content = {"version": VERSION, **asdict(self)}
        for name, usual in {"layout": "original", "ignored": []}.items():
            if content[name] == usual:
                del content[name]  # an earlier glip_hf does not know it
        (directory / RECORD_NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> "ConversionRecord | None":
        """The record in a directory, None if there is none; a RecordError if it cannot be understood."""
        path = directory / RECORD_NAME
        if not path.is_file():
            return None
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            version = content.pop("version")
            record = cls(**content) if version == VERSION else None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RecordError(f"{path} is damaged ({error}); delete it to get the standard layout.") from error
        if record is None:
            raise RecordError(f"{path} has version {version}, this glip_hf knows {VERSION}: update it.")
        return record


def describe_layout(tensors: Mapping[str, Tensor], standard: Sequence[str]) -> dict[str, Any]:
    """The fields dtype, dtypes, keys and absent_buffers of a record.

    Args:
        tensors: the original state dict without prefix.
        standard: keys of the standard layout of this architecture (see `variants.expected_tensors`).
    """
    names = {key: str(tensor.dtype).removeprefix("torch.") for key, tensor in tensors.items()}
    dtype, _ = Counter(name for key, name in names.items() if tensors[key].is_floating_point()).most_common(1)[0]

    def expected(key: str) -> str:
        if key.endswith(("relative_position_index", "position_ids")):
            return "int64"
        return "float32" if ".cell_anchors." in key else dtype

    return {
        "dtype": dtype,
        "dtypes": {key: name for key, name in names.items() if name != expected(key)},
        "keys": None if list(tensors) == standard_order(tensors) else list(tensors),
        "absent_buffers": [key for key in standard if key not in tensors],
    }
