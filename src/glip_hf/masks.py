# Copyright 2026 The glip_hf authors. MIT licence.
"""Masks for boxes, by a SAM, SAM-HQ or SAM 2 model from Transformers.

    segmenter = BoxSegmenter.from_pretrained("facebook/sam2.1-hiera-small", device="cuda")
    result["masks"] = segmenter(image, result["boxes"])  # [K, H, W] bool

Whatever draws, prints or writes detections then shows the masks, too.

Letters: K boxes, H and W height and width of the upright image.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskGeneration, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_MASK_GENERATION_MAPPING

from .inference import open_upright
from .values_glip import check_number
from .visualize import as_seen

# Of the mask decoder, which repeats the embedding of the image for each. The masks of a pass are resized in float32: 16
# of an image of 12 megapixels take 770 MB.
BOXES_PER_PASS = 16


class BoxSegmenter:
    """Gives each box the mask of the object that it encloses.

    Args:
        model: a model for mask generation that takes boxes, such as `SamModel` or `Sam2Model`. Set to evaluation mode.
        processor: that goes with it.
        boxes_per_pass: boxes that the mask decoder takes at a time; results do not depend on it.
    """

    def __init__(self, model: Any, processor: Any, boxes_per_pass: int = BOXES_PER_PASS) -> None:
        self.model, self.processor = model.eval(), processor
        self.boxes_per_pass = check_number("boxes_per_pass", boxes_per_pass, least=1, whole=True)

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> "BoxSegmenter":
        """The model and processor of a directory or a repository of the Hub.

        Raises:
            ValueError: if it holds another kind of model.
            OSError, ImportError: from Transformers, if there is none, or a library for its processor is missing
                (that of SAM 2 needs torchvision).
        """
        config = AutoConfig.from_pretrained(name)
        if type(config) not in MODEL_FOR_MASK_GENERATION_MAPPING:
            raise ValueError(
                f"{name} is a model of type {config.model_type!r}, which makes no masks from boxes: name one of SAM or "
                "SAM 2, such as facebook/sam2.1-hiera-small or facebook/sam-vit-base."
            )
        model = AutoModelForMaskGeneration.from_pretrained(name, dtype=dtype)
        return cls(model.to(device), AutoProcessor.from_pretrained(name))

    @torch.inference_mode()
    def __call__(self, image: Any, boxes: Tensor | Sequence[Sequence[float]]) -> Tensor:
        """The masks of boxes.

        Args:
            image: what the engine takes: a path or URL, encoded bytes, a PIL image, an array or a tensor. It is encoded
                once, however many boxes there are, and not at all without any.
            boxes: [K, 4] xyxy in pixels of the upright image.

        Returns:
            [K, H, W] bool, on the CPU: K x H x W bytes.

        Raises:
            ValueError: for boxes that are NaN or infinite.
        """
        image = as_seen(open_upright(image))
        boxes = torch.as_tensor(boxes, dtype=torch.float32).cpu().reshape(-1, 4)
        if not boxes.isfinite().all():
            row = int((~boxes.isfinite()).any(1).nonzero()[0])
            raise ValueError(f"box {row} is {boxes[row].tolist()}: its corners must be finite, in pixels.")
        masks = torch.zeros(len(boxes), image.height, image.width, dtype=torch.bool)
        if not len(boxes):
            return masks
        inputs = self.processor(images=image, input_boxes=[boxes.tolist()], return_tensors="pt")
        device, dtype = self.model.device, self.model.dtype
        encoded = self.model.get_image_embeddings(inputs["pixel_values"].to(device, dtype))
        given = {"image_embeddings": encoded}
        if self.model.config.model_type == "sam_hq":  # its decoder takes the embeddings of earlier layers, too
            given = dict(zip(("image_embeddings", "intermediate_embeddings"), encoded))
        prompts = inputs["input_boxes"].to(device, dtype)
        sizes = {name: inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs}
        for start in range(0, len(boxes), self.boxes_per_pass):
            rows = slice(start, start + self.boxes_per_pass)
            outputs = self.model(input_boxes=prompts[:, rows], multimask_output=False, **given)
            (own,) = self.processor.post_process_masks(outputs.pred_masks.float().cpu(), **sizes)
            masks[rows] = own[:, 0]
        return masks
