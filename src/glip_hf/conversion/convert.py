# Copyright 2026 The glip_hf authors. MIT licence.
"""From an original checkpoint to a directory that `from_pretrained` reads."""

import os
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from .._writing import replacing
from ..configuration_glip import GlipConfig
from ..image_processing_pil_glip import GlipImageProcessorPil
from ..modeling_glip import GlipForGrounding
from ..processing_glip import GlipProcessor
from ..runs import file_digest
from .checkpoint import read_checkpoint, shorten, verify_checksums
from .layouts import in_file, locate
from .model_card import build_model_card
from .record import BUFFERS_NAME, RECORD_NAME, ConversionError, ConversionRecord, describe_layout
from .restore import download, local_directory
from .variants import VariantError, build_config, expected_tensors, load_config
from .weight_map import WeightMapError, differing_buffers, is_buffer, to_ours

DEFAULT_TOKENIZER = "bert-base-uncased"
MAX_SHARD_SIZE = "1GB"  # GLIP-T (0.93 GB) stays one file, GLIP-L becomes two


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
    ignore: Collection[str] = (),
    force: bool = False,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> Conversion:
    """Converts an original GLIP checkpoint to a model directory, which appears complete or not at all.

    Args:
        source: the `.pth` (or safetensors) with the keys of the original, of mmdetection or of a fork; see
            `checkpoint.read_checkpoint`.
        output: the directory to write; must not exist, or be empty.
        config: for sizes that were not released; see `variants.build_config`.
        tokenizer: a directory, a Hub id, a vocab.txt or tokenizer.json, or a tokenizer. The default is looked up on
            the Hub (or in its cache).
        ema: convert the moving average `model_ema`.
        ignore: patterns of keys that are not GLIP's, to leave out; see `layouts.locate`.
        force: replace `output` if it holds an earlier conversion.
        max_shard_size: weights beyond this are split over several files.

    Raises:
        CheckpointError, LayoutError, VariantError, WeightMapError: the source cannot be read, recognised or matched, or
            differs from its checksums.
        ConversionError: the output exists, the tokenizer does not fit, an index buffer is wrong, or a weight is NaN.
    """
    output = Path(output).resolve()
    _check_output(output, force)
    if Path(source).is_file():  # before gigabytes are read
        tokenizer = find_tokenizer(tokenizer)
    checkpoint = locate(read_checkpoint(source, ema=ema), ignore)
    tensors = checkpoint.tensors
    if config is not None and checkpoint.layout == "mmdet":  # its files lack the class logits, which nothing uses
        config = deepcopy(config) if isinstance(config, GlipConfig) else load_config(config)
        config.num_class_channels = 0
    try:
        glip_config, family = build_config(tensors, config, checkpoint.foreign, checkpoint.remedy)
        altered = _altered_buffers(tensors, glip_config, checkpoint.is_ema)
    except (VariantError, WeightMapError, ConversionError) as error:
        raise type(error)(in_file(str(error), checkpoint.layout)) from error
    weights = {key: tensor for key, tensor in tensors.items() if not is_buffer(key)}
    verify_checksums(checkpoint.path)
    damaged = [key for key, tensor in weights.items() if not tensor.isfinite().all()]
    if damaged:
        raise ConversionError(
            f"{len(damaged)} of {len(weights)} weights have NaN or infinite values ({shorten(damaged)}): training "
            "diverged or the file is damaged. Take an earlier checkpoint, or fetch the file again."
        )
    integers = [f"{key} {tensor.dtype}" for key, tensor in weights.items() if not tensor.is_floating_point()]
    if integers:
        raise ConversionError(f"Weights that are not floating point: {', '.join(integers[:20])}.")
    glip_tokenizer = load_tokenizer(tokenizer, glip_config)
    record = ConversionRecord(
        source_name=checkpoint.path.name,
        source_sha256=file_digest(checkpoint.path),
        source_bytes=checkpoint.path.stat().st_size,
        wrapping=checkpoint.wrapping,
        prefix=checkpoint.prefix,
        altered_buffers=list(altered),
        layout=checkpoint.layout,
        ignored=list(checkpoint.ignored),
        family=family,
        converted_at=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        tools={name: version(name) for name in ("glip_hf", "transformers", "torch", "safetensors")},
        **describe_layout(tensors, list(expected_tensors(glip_config))),
    )
    # The narrowest dtype that holds every weight exactly.
    dtype = reduce(torch.promote_types, {tensor.dtype for tensor in weights.values()})
    # Own memory for every tensor: those of the file share one mapped storage, which safetensors refuses to write.
    ours = {key: tensor.to(dtype, copy=True).contiguous() for key, tensor in to_ours(weights).items()}
    classes = list(checkpoint.classes) or None
    del checkpoint, tensors, weights
    model = GlipForGrounding.from_pretrained(None, config=glip_config, state_dict=ours, dtype=dtype)
    model.load_state_dict(ours, assign=True)  # these very tensors, whatever loading made of them

    with replacing(output) as directory:
        directory.mkdir()
        # save_original_format=False keeps the names of this model; the default writes those of older Swin models.
        model.save_pretrained(directory, max_shard_size=max_shard_size, save_original_format=False)
        GlipProcessor(GlipImageProcessorPil(), glip_tokenizer, class_names=classes).save_pretrained(directory)
        if altered:
            save_file(altered, directory / BUFFERS_NAME)
        record.save(directory)
        build_model_card(record, output.name).save(directory / "README.md")
    notes = [f"tuned for {len(classes)} class names: {shorten(classes, 5)}."] if classes else []
    return Conversion(output, glip_config, record, (*_notes(record), *notes))


def load_tokenizer(
    source: str | os.PathLike[str] | PreTrainedTokenizerBase, config: GlipConfig
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model (see `convert_checkpoint`); a ConversionError if it cannot be loaded, has another
    vocabulary size than the model, or lacks [CLS] or [SEP]."""
    limits: dict[str, Any] = {"model_max_length": config.max_text_length}
    if isinstance(source, PreTrainedTokenizerBase):
        tokenizer = source
    else:
        name = os.fspath(find_tokenizer(source))
        try:
            if not Path(name).is_file():
                tokenizer = AutoTokenizer.from_pretrained(name, **limits)
            elif name.endswith(".json"):
                tokenizer = BertTokenizer(tokenizer_file=name, **limits)
            else:
                tokenizer = BertTokenizer(vocab=name, do_lower_case=True, **limits)
        except Exception as error:  # files, network and formats fail in many ways, all of them the user's to solve
            raise ConversionError(
                f"The tokenizer {name!r} could not be loaded ({type(error).__name__}: {str(error).strip()[:300]}). "
                "Give a directory, a vocab.txt or a Hub id with --tokenizer."
            ) from error
    entries, rows = len(tokenizer), config.text_config.vocab_size
    if entries != rows:
        raise ConversionError(
            f"The vocabulary of the tokenizer {source!r:.200} has {entries} entries, the model's embedding table "
            f"(word_embeddings.weight) has {rows} rows: they do not belong together."
        )
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None or tokenizer.pad_token_id is None:
        raise ConversionError(f"The tokenizer {source!r:.200} lacks [CLS], [SEP] or [PAD]: it is not BERT's.")
    return tokenizer


def find_tokenizer(
    source: str | os.PathLike[str] | PreTrainedTokenizerBase,
) -> str | os.PathLike[str] | PreTrainedTokenizerBase:
    """A Hub id's directory, otherwise `source`; a ConversionError if it cannot be fetched, or is a path of nothing."""
    if isinstance(source, PreTrainedTokenizerBase) or Path(source).exists():
        return source
    try:
        return local_directory(source, "tokenizer") or download(os.fspath(source), ["*.json", "*.txt"])
    except ConversionError as error:
        raise ConversionError(
            f"The tokenizer could not be loaded: {error} Give a directory, a vocab.txt or a Hub id with --tokenizer."
        ) from error


def push_to_hub(directory: str | os.PathLike[str], repo_id: str, private: bool | None = None) -> str:
    """Uploads a converted directory (HF_ENDPOINT, HF_TOKEN); returns the repository's address."""
    api = HfApi()
    url = api.create_repo(repo_id, exist_ok=True, private=private)
    directory = Path(directory)
    record = ConversionRecord.load(directory)
    if record is not None:
        build_model_card(record, repo_id).save(directory / "README.md")
    api.upload_folder(folder_path=directory, repo_id=repo_id, commit_message="Convert GLIP to Transformers")
    return str(url)


def _altered_buffers(tensors: Mapping[str, Tensor], config: GlipConfig, ema: bool) -> dict[str, Tensor]:
    """Index buffers whose values are not the true ones: an error, except in a moving average.

    The original averages integer buffers like everything else, and 0.999 n + 0.001 n can round down. Such buffers are
    returned, to be kept for the way back; the model computes with the true ones.
    """
    altered = {}
    for key, stored, true in differing_buffers(tensors, config.anchor_scale):
        if not ema:
            wrong = int((stored != true).sum()) if stored.shape == true.shape else stored.numel()
            raise ConversionError(
                f"{key}: {wrong} of {stored.numel()} entries are not what the architecture implies "
                f"({true.flatten()[:4].tolist()}... expected, {stored.flatten()[:4].tolist()}... found). This model "
                "recomputes the buffer and would give other results than the checkpoint."
            )
        altered[key] = stored.clone(memory_format=torch.contiguous_format)
    return altered


def _notes(record: ConversionRecord) -> tuple[str, ...]:
    notes = []
    if record.altered_buffers:
        notes.append(
            f"{len(record.altered_buffers)} index buffers of the moving average had drifted; the model uses the true "
            f"ones, {BUFFERS_NAME} keeps the stored ones."
        )
    if record.ignored:
        notes.append(f"{len(record.ignored)} tensors were left out: {shorten(record.ignored, 5)}.")
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
            f"{output} holds no {RECORD_NAME}, so it is not an earlier conversion, and --force replaces nothing else. "
            "Choose another directory or empty this one."
        )
