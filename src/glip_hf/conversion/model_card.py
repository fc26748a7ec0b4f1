# Copyright 2026 The glip_hf authors. MIT licence.
"""The README.md of a converted model: what it is, where its weights come from, what was published about it."""

from huggingface_hub import ModelCard

from .. import hub_glip
from .checkpoint import shorten
from .layouts import LAYOUT_NAMES
from .record import ConversionRecord
from .variants import FAMILIES

_COLUMNS = ("COCO AP", "LVIS minival APr", "ODinW-13 AP")
# Zero-shot results of arXiv 2112.03857 and its release notes: COCO val2017 AP, LVIS minival APr (two entries: the
# checkpoint itself / the one selected on LVIS), ODinW-13 mean AP
PUBLISHED: dict[str, tuple[str, str, str]] = {
    "glip_a_tiny_o365": ("42.9", "-", "28.7"),
    "glip_tiny_model_o365": ("44.9", "13.5", "33.2"),
    "glip_tiny_model_o365_goldg": ("46.7", "14.3 / 17.7", "44.4"),
    "glip_tiny_model_o365_goldg_cc_sbu": ("46.6", "17.6 / 20.1", "42.7"),
    "glip_large_model": ("51.4", "29.3 / 30.1", "51.2"),
}


def build_model_card(record: ConversionRecord, name: str) -> ModelCard:
    """The model card of a converted checkpoint; `name` is its title, usually that of the directory or repository."""
    layout = "" if record.layout == "original" else f" in {LAYOUT_NAMES[record.layout]}"
    source = f"weights {code_span(record.wrapping)}" if record.wrapping else "bare state dict"
    tools = ", ".join(f"{tool} {version}" for tool, version in record.tools.items())
    buffers = (
        f"\n\n{len(record.altered_buffers)} index buffers of this moving average had drifted from "
        "their true values. The model computes with the true ones; the stored ones are kept for conversion back."
        if record.altered_buffers
        else ""
    )
    if record.ignored:
        left = shorten([code_span(key) for key in record.ignored])
        buffers += f"\n\nNot GLIP's and left out knowingly, {len(record.ignored)} tensors: {left}."
    provenance = f"""\
| | |
|---|---|
| source file | {code_span(record.source_name)} ({record.source_bytes:,} bytes) |
| SHA-256 of the source | {code_span(record.source_sha256)} |
| taken from it | {source}{layout}, {record.dtype} |
| converted | {record.converted_at} with {tools} |
| licence | MIT; GLIP is by Microsoft (MIT) |

No value was changed: `convert_hf_to_glip.py` restores every tensor of the source bit for
bit.{buffers}"""
    return hub_glip.build_model_card(
        name,
        architecture=record.family or "a size that was not released, see config.json",
        sections=[("Where the weights come from", provenance), ("Published results", _published(record))],
    )


def _published(record: ConversionRecord) -> str:
    names = [name for name in FAMILIES.get(record.family or "", ()) if name in PUBLISHED]
    if not names:
        return "None: this is not a size that was released."
    stem = record.source_name.removesuffix(".pth")
    stated = (
        f"The file is named like `{stem}`; a name proves nothing, compare the SHA-256."
        if stem in names
        else "The weights do not show which of them this file is, if any."
    )
    rows = [f"| {name} | {' | '.join(PUBLISHED[name])} |" for name in names]
    return (
        "*Published* zero-shot results of the released checkpoints of this architecture, from the "
        f"paper and its release notes; they were not measured on this conversion. {stated}\n\n"
        f"| checkpoint | {' | '.join(_COLUMNS)} |\n|---|{'---|' * len(_COLUMNS)}\n" + "\n".join(rows)
    )


def code_span(text: object) -> str:
    """Text of a file or a user as code in a model card, which it ends neither alone nor in a table."""
    clean = hub_glip.one_line(text).replace("`", "'").replace("|", "\\|")
    return f"`{clean}`"
