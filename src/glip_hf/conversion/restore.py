# Copyright 2026 The glip_hf authors. MIT licence.
"""From a model directory back to a checkpoint that the original code loads."""

import difflib
import json
import os
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig

from .._writing import patient_file, replacing
from ..configuration_glip import GlipConfig
from ..modeling_glip import GlipForGrounding
from ..values_glip import first_line, shown
from .record import BUFFERS_NAME, RECORD_NAME, ConversionError, ConversionRecord
from .weight_map import is_buffer, to_mmdet, to_original

# Name of a layout -> (key of the dict around the weights, prefix of every key)
LAYOUTS = {"plain": (None, ""), "model": ("model", ""), "model-module": ("model", "module.")}
WRAPPING_CHOICES = ("recorded", *LAYOUTS)
_PUBLISHED = {"original": "model", "mmdet": "plain"}  # how the files of each layout were published

# What fine-tuning saves in place of a model: file -> (what it is, its entry for the model it was trained on)
TUNED = {
    "adapter_config.json": ("adapter", "base_model_name_or_path"),
    "prompt_table.json": ("prompt table", "base_model"),
}


def restore_checkpoint(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    to: str | None = None,
    wrapping: str = "recorded",
    force: bool = False,
) -> Path:
    """Writes a converted (or trained) model back as a `.pth` for the original code or for mmdetection.

    With the `conversion.json` of its conversion beside the weights, tensors, dtypes, keys, their order, buffers and
    wrapping are those of the source, if `to` is its layout. Without it (a model saved after training) the standard
    layout is written. What lay beside the weights in the source (optimizer, scheduler), and what was left out of it by
    `--ignore`, is not restored.

    Args:
        source: model directory or Hub id.
        output: the file to write.
        to: "original" or "mmdet"; that of the source by default, without a record the original's.
        wrapping: "recorded" (in another layout than the source's: as its authors publish), or "plain" (bare state
            dict), "model" ({"model": ...}), "model-module" (and the prefix of multi-GPU training).
        force: overwrite `output`.

    Raises:
        ConversionError: if `output` exists, or `source` is not a GLIP model, or one that the layout has no place for.
        WeightMapError: with the list of tensors that have no place in the original layout.
    """
    output = Path(output)
    if output.is_dir():
        raise ConversionError(f"{output} is a directory: give the name of the .pth file to write.")
    if output.exists() and not force:
        raise ConversionError(f"{output} exists: choose another name, or overwrite it with --force.")
    tensors, record = restored_tensors(source, to)
    to = to or (record.layout if record else "original")
    recorded = (record.wrapping, record.prefix) if record and record.layout == to else LAYOUTS[_PUBLISHED[to]]
    key, prefix = recorded if wrapping == "recorded" else LAYOUTS[wrapping]
    state_dict = {prefix + name: tensor for name, tensor in tensors.items()}
    with replacing(output) as path, patient_file(path) as file:
        torch.save(state_dict if key is None else {key: state_dict}, file)
    return output


def local_directory(source: str | os.PathLike[str], of: str = "model") -> Path | None:
    """The directory `source`, or None if it can only be a Hub id: what is misspelt is never looked up on the Hub. A
    ConversionError if it is a file, or a path of nothing.

    Hub ids have the form USER/NAME, but what is not `of` a "model" (a GLIP) may have one without a user.
    """
    name, path = os.fspath(source), Path(source)
    if name and os.path.isdir(path):
        return path
    if os.path.isfile(path):
        convert = f"convert it first: glip convert {name} {path.with_suffix('')}"
        remedy = convert if of == "model" else "name its folder."
        raise ConversionError(f"{name} is a file; {remedy}")
    try:
        validate_repo_id(name)
        # A Hub id, unless its first half is a directory here.
        if not os.path.isdir(path.parent) if "/" in name else of != "model":
            return None
    except HFValidationError:  # more than one slash, a leading dot, blanks
        pass
    siblings = [child.name for child in path.parent.iterdir()] if os.path.isdir(path.parent) else []
    nearest = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f"did you mean {path.parent / nearest[0]}?" if nearest else f"a {of} on the Hub is named USER/NAME."
    raise ConversionError(f"{shown(name) or repr(name)}: no such directory; {hint}")


def model_directory(source: str | os.PathLike[str], weights: bool = True) -> Path:
    """The directory of a model: `source` itself, or the download of a Hub id (without weights, if not asked for); a
    ConversionError if it is neither."""
    return local_directory(source) or download(os.fspath(source), ["*.json", "*.txt", *["*.safetensors"] * weights])


def download(repo_id: str, patterns: list[str]) -> Path:
    """The files of a repository on the Hub, from the cache without a network; else a ConversionError with the cause."""
    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns))
    except RepositoryNotFoundError as error:
        reason = "the Hub has no such repository, or a private one (then log in: hf auth login)."
        raise ConversionError(f"{repo_id}: there is no such directory, and {reason}") from error
    except Exception as error:  # network, proxies, certificates and disks fail in many ways
        raise ConversionError(
            f"{repo_id}: there is no such directory, and the Hub cannot be reached ({shown(first_line(error))})."
        ) from error


def find_model(source: str | os.PathLike[str]) -> tuple[Path, tuple[str, str] | None]:
    """The directory of a model, without its weights, and for an adapter or a prompt table that of the model which it
    was trained on; then also what `source` is, and the name of that model. A ConversionError if that model is not
    named, or is not there."""
    directory = model_directory(source, weights=False)
    for file, (kind, entry) in TUNED.items():
        if (directory / file).is_file() and not (directory / "config.json").is_file():
            base = json.loads((directory / file).read_text(encoding="utf-8")).get(entry)
            try:
                model = model_directory(base, weights=False) if base else directory
                if not (model / "config.json").is_file():
                    raise ConversionError("there is no model.")
            except ConversionError as error:
                raise ConversionError(
                    f"{directory} has a {kind} for the model {shown(str(base))}: {str(error).rstrip('.')}; write the "
                    f"place of the model into {entry} of {file}."
                ) from error
            return model, (kind, base)
    return directory, None


def whole_model(source: str | os.PathLike[str]) -> Path:
    """The directory of a model, as `model_directory` gives it; a ConversionError also for what is not a GLIP, and for
    an adapter or a prompt table without its model."""
    directory, tuned = find_model(source)
    if tuned:
        kind, base = tuned
        made = "a model after model.load_prompt_table(folder)"
        if kind == "adapter":
            made = "peft.PeftModel.from_pretrained(model, folder).merge_and_unload()"
        raise ConversionError(
            f"{os.fspath(source)} has {'an' if kind == 'adapter' else 'a'} {kind} alone, for {shown(base, 300)}: save "
            f"{made} with save_pretrained, and give that folder."
        )
    read_config(os.fspath(source), directory)
    return model_directory(source)


def read_config(source: str, directory: Path | None = None) -> GlipConfig:
    """The configuration of a converted model: a directory or a Hub id, also of an adapter or a prompt table for one. A
    ConversionError, in one line, if there is nothing, or something other than a GLIP. `directory` is what `find_model`
    gave for `source`, if it was asked already."""
    directory = find_model(source)[0] if directory is None else directory
    if not (directory / "config.json").is_file():
        raise ConversionError(f"{source}: no config.json in there; glip convert writes one")
    try:
        fields, _ = PreTrainedConfig.get_config_dict(directory)
    except (OSError, ValueError) as error:
        raise ConversionError(f"{source}: cannot be loaded ({first_line(error)})") from error
    if fields.get("model_type") != GlipConfig.model_type:
        raise ConversionError(f"{source} is a model of type {fields.get('model_type')!r}, not a GLIP")
    try:
        return GlipConfig.from_dict(fields)
    except StrictDataclassError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise ConversionError(f"{source}: its config.json is not valid ({shown(reason)})") from error


def read_class_names(source: str | os.PathLike[str]) -> list[str] | None:
    """The class names that fine-tuning saved with a model, an adapter or a prompt table; None where there are none. A
    ConversionError if there is no such model, or its processor_config.json cannot be read."""
    file = model_directory(source, weights=False) / "processor_config.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("class_names") if file.is_file() else None
    except (OSError, ValueError, AttributeError) as error:
        raise ConversionError(f"{file} cannot be read ({shown(str(error))}).") from error


def restored_tensors(
    source: str | os.PathLike[str], to: str | None = None
) -> tuple[dict[str, Tensor], ConversionRecord | None]:
    """The state dict (no prefix) of a model directory or Hub id in the layout `to`, and its record if any."""
    directory = whole_model(source)
    config = read_config(os.fspath(directory))
    if getattr(config, "quantization_config", None):
        raise ConversionError(f"{directory} has quantised weights: restore the model that they were made of.")
    # Through the model class, which also reads files with the older names of Swin's parameters.
    model, info = GlipForGrounding.from_pretrained(directory, dtype="auto", output_loading_info=True)
    gaps = {name: sorted(info[name]) for name in ("missing_keys", "unexpected_keys") if info[name]}
    if gaps:
        raise ConversionError(f"{directory} is incomplete or has tensors that are not GLIP's: {gaps}")
    restored = to_original(model.state_dict(), config.anchor_scale)
    record = ConversionRecord.load(directory)
    to = to or (record.layout if record else "original")
    if record is not None:
        restored = _as_recorded(restored, record, directory, complete=to == "original" != record.layout)
    if to == "original":
        return restored, record
    if config.prompt_table_length and not (record and record.layout == to):
        raise ConversionError(
            f"{directory} has a prompt table, which mmdetection's GLIP would ignore: write it with --to original."
        )
    return to_mmdet(restored), record


def _as_recorded(
    restored: dict[str, Tensor], record: ConversionRecord, directory: Path, complete: bool
) -> dict[str, Tensor]:
    """Dtypes, buffers and order as the source had them; if `complete`, all buffers in standard order."""
    if record.altered_buffers:
        restored |= load_file(directory / BUFFERS_NAME)
    for key in () if complete else record.absent_buffers:
        restored.pop(key, None)
    for key, tensor in restored.items():
        if key in record.dtypes or not is_buffer(key):
            restored[key] = tensor.to(getattr(torch, record.dtypes.get(key, record.dtype)))
    keys = list(restored) if complete or record.keys is None else record.keys
    if set(keys) != set(restored):
        differing = sorted(set(keys) ^ set(restored))
        raise ConversionError(
            f"{directory / RECORD_NAME} lists other tensors than the weights beside it ({', '.join(differing[:10])}): "
            "delete it to get the standard layout."
        )
    return {key: restored[key] for key in keys}
