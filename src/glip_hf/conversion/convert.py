# Copyright 2026 The glip_hf authors. MIT licence.
"""From an original checkpoint to a directory that `from_pretrained` reads."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from ..configuration_glip import GlipConfig
from .checkpoint import read_checkpoint, sha256_of
from .model_card import build_model_card
from .record import BUFFERS_NAME, RECORD_NAME, ConversionRecord, describe_layout
from .variants import build_config, expected_tensors
from .weight_map import differing_buffers, is_buffer, to_ours

if TYPE_CHECKING:
    from ..modeling_glip import GlipForGrounding

DEFAULT_TOKENIZER = "bert-base-uncased"
MAX_SHARD_SIZE = "1GB"
"""GLIP-T (0.93 GB) stays one file, GLIP-L becomes two."""


class ConversionError(ValueError):
    """The conversion cannot be done as asked; the message says what to change."""


@dataclass(frozen=True)
class Conversion:
    """What `convert_checkpoint` did: output directory, config, record, and notes worth showing."""

    directory: Path
    config: GlipConfig
    record: ConversionRecord
    notes: tuple[str, ...] = ()


def convert_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | GlipConfig | None = None,
    tokenizer: str | os.PathLike[str] | PreTrainedTokenizerBase = DEFAULT_TOKENIZER,
    ema: bool = False,
    force: bool = False,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Conversion:
    """Converts an original GLIP checkpoint to a model directory.

    The directory appears complete or not at all: it is built beside its place and renamed.

    Args:
        source: the `.pth` (or safetensors with original keys); see `checkpoint.read_checkpoint`.
        output: the directory to write; must not exist, or be empty.
        config: for sizes that were not released; see `variants.build_config`.
        tokenizer: a directory, a Hub id, a vocab.txt or tokenizer.json, or a tokenizer. The default
            is looked up on the Hub (or in its cache).
        ema: convert the moving average `model_ema`.
        force: replace `output` if it holds an earlier conversion.
        max_shard_size: weights beyond this are split over several files.

    Raises:
        CheckpointError, VariantError, WeightMapError: the source cannot be read, told or matched.
        ConversionError: the output exists, the tokenizer does not fit, or an index buffer is wrong.
    """
    from ..modeling_glip import GlipForGrounding

    output = Path(output).resolve()
    _check_output(output, force)
    checkpoint = read_checkpoint(source, ema=ema)
    tensors = checkpoint.tensors
    glip_config, family = build_config(tensors, config)
    altered = _check_buffers(tensors, glip_config, checkpoint.is_ema)
    weights = {key: tensor for key, tensor in tensors.items() if not is_buffer(key)}
    strange = [f"{key} {tensor.dtype}" for key, tensor in weights.items() if not tensor.is_floating_point()]
    if strange:
        raise ConversionError(f"Weights that are not floating point: {', '.join(strange[:20])}.")
    glip_tokenizer = load_tokenizer(tokenizer, glip_config)

    record = ConversionRecord(
        source_name=checkpoint.path.name,
        source_sha256=sha256_of(checkpoint.path),
        source_bytes=checkpoint.path.stat().st_size,
        wrapping=checkpoint.wrapping,
        prefix=checkpoint.prefix,
        altered_buffers=list(altered),
        family=family,
        converted_at=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        tools=_tool_versions(),
        **describe_layout(tensors, list(expected_tensors(glip_config))),
    )
    # The narrowest dtype that holds every weight exactly.
    dtype = _common_dtype(weights)
    # Own memory for every tensor: those of the file share one mapped storage, which safetensors
    # refuses to write.
    ours = {key: tensor.to(dtype, copy=True).contiguous() for key, tensor in to_ours(weights).items()}
    del checkpoint, tensors, weights
    model = GlipForGrounding.from_pretrained(None, config=glip_config, state_dict=ours, dtype=dtype)
    _check_loaded(model, ours)
    del ours

    with _atomic_directory(output) as directory:
        # save_original_format=False keeps the names of this model; the default writes those of
        # older Swin models.
        model.save_pretrained(directory, max_shard_size=max_shard_size, save_original_format=False)
        _build_processor(glip_tokenizer).save_pretrained(directory)
        if altered:
            save_file(altered, directory / BUFFERS_NAME)
        record.save(directory)
        build_model_card(record, output.name).save(directory / "README.md")
    return Conversion(output, glip_config, record, _notes(record))


def load_tokenizer(
    source: str | os.PathLike[str] | PreTrainedTokenizerBase, config: GlipConfig
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, checked against its embedding table.

    Args:
        source: directory, Hub id, vocab.txt, tokenizer.json, or a tokenizer.

    Raises:
        ConversionError: if it cannot be loaded, has another number of words than the model, or
            lacks [CLS] or [SEP].
    """
    limits: dict[str, Any] = {"model_max_length": config.max_text_length}
    if isinstance(source, PreTrainedTokenizerBase):
        tokenizer = source
    else:
        name = os.fspath(source)
        try:
            if Path(name).is_file():
                if name.endswith(".json"):
                    tokenizer = BertTokenizer(tokenizer_file=name, **limits)
                else:
                    tokenizer = BertTokenizer(vocab=name, do_lower_case=True, **limits)
            else:
                tokenizer = AutoTokenizer.from_pretrained(name, **limits)
        except Exception as error:  # files, network and formats fail in many ways, all of them the user's to solve
            raise ConversionError(
                f"The tokenizer {name!r} could not be loaded ({type(error).__name__}: {str(error).strip()[:300]}). "
                "Give a directory, a vocab.txt or a Hub id with --tokenizer."
            ) from error
    words, rows = len(tokenizer), config.text_config.vocab_size
    if words != rows:
        raise ConversionError(
            f"The tokenizer {source!r:.200} has {words} words, the model's embedding table (word_embeddings.weight) "
            f"has {rows} rows: they do not belong together."
        )
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None or tokenizer.pad_token_id is None:
        raise ConversionError(f"The tokenizer {source!r:.200} lacks [CLS], [SEP] or [PAD]: it is not BERT's.")
    return tokenizer


def push_to_hub(directory: str | os.PathLike[str], repo_id: str, private: bool | None = None) -> str:
    """Uploads a converted directory (HF_ENDPOINT, HF_TOKEN); returns the repository's address."""
    from huggingface_hub import HfApi

    api = HfApi()
    url = api.create_repo(repo_id, exist_ok=True, private=private)
    directory = Path(directory)
    record = ConversionRecord.load(directory)
    if record is not None:
        build_model_card(record, repo_id).save(directory / "README.md")
    api.upload_folder(folder_path=directory, repo_id=repo_id, commit_message="Convert GLIP to Transformers")
    return str(url)


def _build_processor(tokenizer: PreTrainedTokenizerBase) -> Any:
    from ..image_processing_pil_glip import GlipImageProcessorPil
    from ..processing_glip import GlipProcessor

    return GlipProcessor(image_processor=GlipImageProcessorPil(), tokenizer=tokenizer)


def _check_buffers(tensors: Mapping[str, Tensor], config: GlipConfig, ema: bool) -> dict[str, Tensor]:
    """Index buffers whose values are not the true ones: an error, except in a moving average.

    The original averages integer buffers like everything else, and 0.999 n + 0.001 n can round
    down. Such buffers are returned, to be kept for the way back; the model computes with the true
    ones.
    """
    altered = {}
    for key, stored, true in differing_buffers(tensors, config.anchor_scale):
        wrong = int((stored != true).sum()) if stored.shape == true.shape else stored.numel()
        if not ema:
            raise ConversionError(
                f"{key}: {wrong} of {stored.numel()} entries are not what the architecture implies "
                f"({true.flatten()[:4].tolist()}... expected, {stored.flatten()[:4].tolist()}... found). This model "
                "recomputes the buffer and would give other results than the checkpoint."
            )
        altered[key] = stored.clone(memory_format=torch.contiguous_format)
    return altered


def _common_dtype(weights: Mapping[str, Tensor]) -> torch.dtype:
    dtypes = {tensor.dtype for tensor in weights.values()}
    common = dtypes.pop()
    for dtype in dtypes:
        common = torch.promote_types(common, dtype)
    return common


def _check_loaded(model: "GlipForGrounding", ours: Mapping[str, Tensor]) -> None:
    """The model must hold exactly the converted tensors."""
    state = model.state_dict()
    if state.keys() != ours.keys():
        raise ConversionError(f"Loading lost or added tensors: {sorted(state.keys() ^ ours.keys())[:20]}")
    for key, tensor in ours.items():
        if state[key].dtype != tensor.dtype or not _same_bits(state[key], tensor):
            raise ConversionError(f"Loading changed {key}.")


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit, NaN included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if torch.equal(a, b):
        return True
    return torch.equal(a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8))


def _tool_versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    try:
        own = version("glip_hf")
    except PackageNotFoundError:
        own = "(not installed)"
    return {
        "glip_hf": own,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "safetensors": safetensors.__version__,
    }


def _notes(record: ConversionRecord) -> tuple[str, ...]:
    notes = []
    if record.altered_buffers:
        notes.append(
            f"{len(record.altered_buffers)} index buffers of the moving average had drifted; the model uses the true "
            f"ones, {BUFFERS_NAME} keeps the stored ones."
        )
    if record.dtypes:
        notes.append(f"{len(record.dtypes)} tensors are stored in another dtype than {record.dtype}.")
    return tuple(notes)


def _check_output(output: Path, force: bool) -> None:
    if output.is_file():
        raise ConversionError(f"{output} is a file: give the directory to write.")
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not force:
        raise ConversionError(f"{output} is not empty: choose another directory, or replace it with --force.")
    if not (output / RECORD_NAME).is_file():
        raise ConversionError(
            f"{output} holds no {RECORD_NAME}, so it is no earlier conversion, and --force replaces nothing else. "
            "Choose another directory or empty this one."
        )


@contextlib.contextmanager
def _atomic_directory(output: Path) -> Iterator[Path]:
    """A new directory beside `output` that takes its place at the end, or vanishes on an error."""
    output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    try:
        yield work
        # Temporary directories and the files safetensors writes are readable by their owner only.
        mask = _umask()
        work.chmod(0o777 & ~mask)
        for path in work.rglob("*"):
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        old = None
        if output.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".old", dir=output.parent))
            os.rename(output, old / output.name)
        try:
            os.rename(work, output)
        except OSError:
            if old is not None:
                os.rename(old / output.name, output)
            raise
        finally:
            if old is not None and output.exists():
                shutil.rmtree(old)
    finally:
        if work.exists():
            shutil.rmtree(work)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


__all__ = [
    "DEFAULT_TOKENIZER",
    "MAX_SHARD_SIZE",
    "Conversion",
    "ConversionError",
    "convert_checkpoint",
    "load_tokenizer",
    "push_to_hub",
]
