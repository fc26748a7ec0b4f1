# Copyright 2026 The glip_hf authors. MIT licence.
"""Prompt tuning: a learned table, added to the text, in place of a tuned model, as in the original.

Row t is added to the output of the text encoder at token t, before the head. The table is zero-initialised, so that a
new one changes nothing, and is saved alone: at most a few megabytes that load on top of any model of the same text
width.

    model.add_prompt_table(256)             # then train with `training.tuning`, mode "prompt"
    model.save_prompt_table("my-task")      # prompt_table.safetensors, prompt_table.json
    model.load_prompt_table("my-task")      # a directory or a Hub repository
"""

import hashlib
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import cached_file, logging

logger = logging.get_logger(__name__)

TABLE_FILE = "prompt_table.safetensors"
INFO_FILE = "prompt_table.json"
FORMAT = 1

_IGNORED = ("_name_or_path", "architectures", "auto_map", "dtype", "prompt_table_length", "transformers_version")


def config_hash(config: Any) -> str:
    """16 hexadecimal digits that identify the configuration a table was trained with.

    Fields that do not change what a model computes (where it came from, its dtype, the table itself) are left out.
    """
    fields = {key: value for key, value in config.to_dict().items() if key not in _IGNORED}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()[:16]


class GlipPromptTableMixin:
    """The table of a `GlipModel`, for the model itself and for the models built on it."""

    def add_prompt_table(self, length: int | None = None) -> nn.Parameter:
        """Give the model a zero-initialised table, in place of the one it may have.

        Args:
            length: rows; default `max_text_length`, since no caption is longer (the original has 1000).

        Raises:
            ValueError: for fewer than one row.
        """
        length = self.config.max_text_length if length is None else length
        if length < 1:
            raise ValueError(f"a prompt table of {length} rows: give at least 1.")
        base, width = self.base_model, self.config.text_config.hidden_size
        base.prompt_table = nn.Parameter(torch.zeros(length, width, dtype=base.dtype, device=base.device))
        self.config.prompt_table_length = length
        return base.prompt_table

    def remove_prompt_table(self) -> None:
        """Remove the table."""
        self.base_model.prompt_table = None
        self.config.prompt_table_length = 0

    def save_prompt_table(self, directory: str | os.PathLike[str]) -> Path:
        """Save the table, and nothing else of the model, to a directory; a ValueError if the model has none."""
        table = self.base_model.prompt_table
        if table is None:
            raise ValueError("this model has no prompt table: call add_prompt_table or load_prompt_table.")
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        save_file({"prompt_table": table.detach().cpu().contiguous()}, directory / TABLE_FILE)
        info = {
            "format": FORMAT,
            "length": table.shape[0],
            "text_width": table.shape[1],
            "base_model": getattr(self.config, "_name_or_path", ""),
            "base_config_hash": config_hash(self.config),
        }
        (directory / INFO_FILE).write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
        return directory

    def load_prompt_table(self, source: str | os.PathLike[str], **hub_options: Any) -> nn.Parameter:
        """Add a saved table to this model.

        Args:
            source: a directory or a Hub repository.
            hub_options: `revision`, `token`, `cache_dir`, `local_files_only`, ...

        Raises:
            OSError: if there is none at `source`.
            ValueError: for a table of another width than this model's text encoder, or of an unknown format.
        """
        source = os.fspath(source)
        info = json.loads(Path(cached_file(source, INFO_FILE, **hub_options)).read_text(encoding="utf-8"))
        origin = info.get("base_model") or "another model"
        if info.get("format") != FORMAT:
            raise ValueError(f"{source}: {INFO_FILE} has format {info.get('format')!r}, this version reads {FORMAT}.")
        table = load_file(cached_file(source, TABLE_FILE, **hub_options))["prompt_table"]
        width = self.config.text_config.hidden_size
        if table.ndim != 2 or table.shape[1] != width:
            raise ValueError(
                f"{source}: a prompt table of shape {tuple(table.shape)} does not fit a text encoder of width "
                f"{width}: it was trained on {origin}."
            )
        if info.get("base_config_hash") != config_hash(self.config):
            logger.warning(
                f"The prompt table {source} was trained on {origin}, whose configuration differs from this model's: "
                "expect worse results here."
            )
        parameter = self.add_prompt_table(len(table))
        with torch.no_grad():
            parameter.copy_(table)
        return parameter

    def push_prompt_table(self, repo_id: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Upload the table to a Hub repository, which is created if there is none; returns its URL."""
        api = HfApi(token=token)
        repository = api.create_repo(repo_id, private=private, exist_ok=True)
        with TemporaryDirectory() as directory:
            self.save_prompt_table(directory)
            api.upload_folder(repo_id=repository.repo_id, folder_path=directory, commit_message="Upload prompt table")
        return str(repository)
