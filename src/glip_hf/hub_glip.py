# Copyright 2026 The glip_hf authors. MIT licence.
"""Saving and pushing GLIP: a model card, and on request the code that runs the model.

With `save_pretrained(directory, with_code=True)` the flat files (`*_glip.py`) are copied beside the weights, and the
Auto classes load the directory with `trust_remote_code=True` where glip_hf is not installed.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData

CARD_NAME = "README.md"
TAGS = ("glip", "zero-shot-object-detection", "phrase-grounding", "object-detection", "vision", "vision-language")
AUTO_CONFIG = {
    "AutoConfig": "configuration_glip.GlipConfig",
    "AutoModel": "modeling_glip.GlipModel",
    "AutoModelForZeroShotObjectDetection": "modeling_glip.GlipForGrounding",
}
AUTO_IMAGE_PROCESSOR = {  # the PIL backend, the torchvision backend
    "AutoImageProcessor": [
        "image_processing_pil_glip.GlipImageProcessorPil",
        "image_processing_glip.GlipImageProcessor",
    ]
}
AUTO_PROCESSOR = {"AutoProcessor": "processing_glip.GlipProcessor"}

_with_code: ContextVar[bool] = ContextVar("glip_with_code", default=False)

_INTRODUCTION = """\
GLIP (Grounded Language-Image Pre-training, [arXiv 2112.03857](https://arxiv.org/abs/2112.03857)) for Transformers: it
detects in an image the objects that you name or describe."""
_LIMITS = """\
## Limits

The model answers every class name with the boxes that fit best, also where the image shows no such object: choose the
threshold on images of your own. It was trained on English captions and inherits the biases of its data."""
_SNIPPET = """\
```python
import torch
from PIL import Image
from {package} import {model}, {processor}

model = {model}.from_pretrained({name}{trust}).eval()
processor = {processor}.from_pretrained({name}{trust})

image = Image.open("image.jpg")
inputs = processor(images=image, text=["cat", "remote control"], return_tensors="pt")
with torch.inference_mode():
    outputs = model(**inputs)
found = processor.post_process_grounded_object_detection(outputs, inputs, threshold=0.4)[0]
for name, score, box in zip(found["text_labels"], found["scores"], found["boxes"]):
    print(f"{{name}}: {{score:.2f}} at {{[round(v) for v in box.tolist()]}}")
```"""


def one_line(text: Any) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())


def build_model_card(
    name: str,
    *,
    architecture: str | None = None,
    sections: Sequence[tuple[str, str]] = (),
    with_code: bool = False,
    **metadata: Any,
) -> ModelCard:
    """The README.md of a GLIP model: metadata for the Hub, usage, what is known of its weights.

    Args:
        name: Hub id or directory; the title, and what the snippet loads.
        architecture: the size of the model in a few words.
        sections: (heading, text) on provenance, metrics and the like, between usage and limits.
        with_code: the code is saved with the weights, so that the snippet does not need glip_hf.
        metadata: further fields of `ModelCardData`, such as `base_model` or `datasets`, or other values for the
            defaults.
    """
    fields = {"library_name": "transformers", "pipeline_tag": "zero-shot-object-detection", "license": "mit"}
    fields |= {"tags": list(TAGS), "language": "en", **metadata}
    code = {"package": "glip_hf", "model": "GlipForGrounding", "processor": "GlipProcessor", "trust": ""}
    if with_code:
        code = {"package": "transformers", "model": "AutoModelForZeroShotObjectDetection", "processor": "AutoProcessor"}
        code["trust"] = ", trust_remote_code=True"
    parts = [
        f"---\n{ModelCardData(**fields).to_yaml()}\n---",
        re.sub(r"([<\[`])", r"\\\1", f"# {one_line(name)}"),
        _INTRODUCTION + (f" Architecture: {architecture}." if architecture else ""),
        _SNIPPET.format(name=json.dumps(name), **code),
        *(f"## {heading}\n\n{text}" for heading, text in sections),
        _LIMITS,
    ]
    return ModelCard("\n\n".join(parts) + "\n", ignore_metadata_errors=False)


def copy_code(directory: str | os.PathLike[str]) -> list[Path]:
    """Copy the flat files (`*_glip.py`, `_compat.py`) to a directory; returns the new files."""
    here = Path(__file__).parent
    return [Path(shutil.copy(source, directory)) for source in [here / "_compat.py", *sorted(here.glob("*_glip.py"))]]


@contextmanager
def _saving_code(with_code: bool | None) -> Iterator[None]:
    """Whether code is saved too within the block; None leaves it as it is outside."""
    token = _with_code.set(_with_code.get() if with_code is None else with_code)
    try:
        yield
    finally:
        _with_code.reset(token)


@contextmanager
def _auto_map(owner: Any, auto_map: dict[str, Any], with_code: bool) -> Iterator[None]:
    """Set `owner.auto_map` for the time of a save: ours with code, else the entries that name other repositories.

    An object that was loaded from a directory with code still has the map of that directory, which a save without code
    must not repeat.
    """
    before = vars(owner).pop("auto_map", None)
    elsewhere = {key: value for key, value in (before or {}).items() if "--" in str(value)}
    now = auto_map if with_code else elsewhere
    try:
        if now:
            owner.auto_map = dict(now)
        yield
    finally:
        vars(owner).pop("auto_map", None)
        if before is not None:
            owner.auto_map = before


class GlipHubMixin:
    """Saving and pushing with model card and code, for model, image processor and processor.

    For classes that were themselves loaded as custom code, Transformers always saves the code too.
    """

    def _auto_maps(self) -> list[tuple[Any, dict[str, Any]]]:
        """The objects whose JSON files name classes, and the names of these classes."""
        raise NotImplementedError(f"{type(self).__name__} must say which classes its JSON files name")

    def _model_card(self, name: str) -> ModelCard:
        return build_model_card(name, with_code=self._saves_code())

    def _saves_code(self) -> bool:
        return _with_code.get() or self._is_custom_code()

    def _is_custom_code(self) -> bool:
        return type(self)._auto_class is not None

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, with_code: bool | None = None, **kwargs: Any
    ) -> Any:
        """Like Transformers' method of this name; a model also gets a card where there is none.

        Args:
            save_directory: the directory to write.
            with_code: copy the code too and name its classes in the JSON files, so that the Auto classes load the
                directory with `trust_remote_code=True` where glip_hf is not installed. Default: no, unless this save is
                part of a push `with_code`.
        """
        with _saving_code(with_code), ExitStack() as stack:
            if not self._is_custom_code():
                for owner, auto_map in self._auto_maps():
                    stack.enter_context(_auto_map(owner, auto_map, _with_code.get()))
            saved = super().save_pretrained(save_directory, *args, **kwargs)
            if kwargs.get("is_main_process", True) and os.path.isdir(save_directory):
                if _with_code.get():
                    copy_code(save_directory)
                self._add_model_card(Path(save_directory))
        return saved

    def _add_model_card(self, directory: Path) -> None:
        """Overridden by models."""

    def push_to_hub(self, repo_id: str, *, with_code: bool = False, **kwargs: Any) -> Any:
        """Like Transformers' method of this name; `with_code` as in `save_pretrained`.

        A repository without a model card gets ours; one that is there is kept.
        """
        with _saving_code(with_code):
            return super().push_to_hub(repo_id, **kwargs)

    def _upload_modified_files(
        self, working_dir: str | os.PathLike[str], repo_id: str, *args: Any, **kwargs: Any
    ) -> Any:
        # Every push of Transformers calls this, with its own near-empty card if there is none.
        if _with_code.get():
            copy_code(working_dir)
        if not HfApi(token=kwargs.get("token")).file_exists(repo_id, CARD_NAME):
            self._model_card(repo_id).save(Path(working_dir) / CARD_NAME)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)


class GlipModelHubMixin(GlipHubMixin):
    """`GlipHubMixin` for models."""

    def _auto_maps(self) -> list[tuple[Any, dict[str, Any]]]:
        return [(self.config, AUTO_CONFIG)]

    def _add_model_card(self, directory: Path) -> None:
        if not (directory / CARD_NAME).exists():
            self._model_card(directory.resolve().name).save(directory / CARD_NAME)

    def _model_card(self, name: str) -> ModelCard:
        config = self.config
        backbone, text = config.backbone_config, config.text_config
        rows = [("parameters", f"{self.num_parameters():,}"), ("dtype", str(self.dtype)[6:])]
        source = getattr(config, "_name_or_path", "")
        if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not os.path.exists(source) and source != name:
            rows.append(("started from", f"[{source}](https://huggingface.co/{source})"))
        rows.append(("licence", "MIT; GLIP is by Microsoft (MIT)"))
        table = "\n".join(f"| {key} | {value} |" for key, value in rows)
        fusion = "" if config.use_fusion else " without fusion"
        return build_model_card(
            name,
            architecture=f"{backbone.model_type} and {text.model_type}, {config.num_blocks} blocks{fusion}",
            sections=[("These weights", f"| | |\n|---|---|\n{table}")],
            with_code=self._saves_code(),
            tags=list(dict.fromkeys([*TAGS, *(self.model_tags or [])])),
        )
