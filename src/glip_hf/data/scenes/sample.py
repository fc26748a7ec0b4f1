# Copyright 2026 The glip_hf authors. MIT licence.
"""A scene as training and evaluation see it: image, boxes, caption; and sheets to look at."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...prompts_glip import Prompt, Span
from ..records import ImageRef, Record
from ..transforms import box_areas
from .config import SPLITS, Rng, SceneConfig
from .layout import Plan, choose_things, compose, compose_relation
from .painting import Thing
from .wording import Wording, describe, describe_relation, list_names

FAMILIES = ("list", "sentence", "relation")


@dataclass
class SceneSample:
    """An image and its caption.

    Letters: S side of the image, K boxes, C rows (phrases or class names) of the caption.

    Attributes:
        image: [S, S, 3] uint8, RGB.
        boxes: [K, 4] float32 xyxy pixels of what is visible, both corners inside.
        labels: [K] int64, the row of each box. A thing that several rows name has a box for each.
        prompt: caption and character spans of the C rows (`prompts_glip.Prompt`).
        by_relation: the row that only a relation distinguishes from a like thing; None elsewhere.
        split, seed, index: what the sample is made from.
        things: all things of the image, named or not, distractors (kind None) too.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    prompt: Prompt
    by_relation: int | None
    split: str
    seed: int
    index: int
    things: list[Thing]

    @property
    def caption(self) -> str:
        return self.prompt.caption

    @property
    def rows(self) -> list[str]:
        """The text of each row: class names, or phrases."""
        return [" ".join(self.caption[begin:end] for begin, end in row) for row in self.prompt.spans]

    @property
    def names(self) -> list[str] | None:
        """The class names if the caption is a list of them; None for a sentence."""
        return self.rows if self.prompt.exact else None

    @property
    def box_spans(self) -> list[list[Span]]:
        """The spans that name each box; length K."""
        return [self.prompt.spans[label] for label in self.labels]

    @property
    def pil(self) -> Image.Image:
        return Image.fromarray(self.image)

    def record(self) -> Record:
        """The scene as a captioned image like any other; a list of class names is a caption, too."""
        encoded = io.BytesIO()
        self.pil.save(encoded, "BMP")  # costs next to nothing, both ways
        height, width = self.image.shape[:2]
        where = f"{self.split} scene {self.index} of seed {self.seed}"
        return Record(
            source="scenes",
            image_id=self.index,
            image=ImageRef(where, data=encoded.getvalue()),
            width=width,
            height=height,
            boxes=self.boxes,
            labels=np.ones(len(self.boxes), dtype=np.int64),
            areas=box_areas(self.boxes),
            caption=self.caption,
            spans=self.box_spans,
            eval_spans=self.prompt.spans,
        )

    def annotation(self) -> dict:
        """What `GlipProcessor(..., annotations=)` takes: a COCO record with rows as categories."""
        return {
            "image_id": self.index,
            "annotations": [
                {"bbox": [x1, y1, x2 - x1 + 1, y2 - y1 + 1], "category_id": int(label)}
                for (x1, y1, x2, y2), label in zip(self.boxes.tolist(), self.labels)
            ],
        }


def make_scene(split: str, seed: int, index: int, config: SceneConfig | None = None) -> SceneSample:
    """Scene `index` of a stream; a function of the arguments alone.

    Args:
        split: a key of `config.SPLITS`; no two share a scene.
        seed, index: 0 .. 2^32 - 1.

    Raises:
        ValueError: for an unknown split, or a seed or index out of range.
    """
    config = config or SceneConfig()
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown: choose one of {', '.join(SPLITS)}.")
    if not (0 <= seed < 2**32 and 0 <= index < 2**32):
        raise ValueError(f"seed {seed} and index {index} must lie in 0 .. 2^32 - 1.")
    rng = Rng(SPLITS[split], seed, index)
    family = {"sentences": "sentence", "relations": "relation"}.get(split, "list")
    if split == "train":
        family = rng.weighted_choice(FAMILIES, [weights for start, weights in config.families if start <= index][-1])
    wording = None
    while wording is None:  # captions cannot always tell the things of a scene apart
        image, things, wording = _make(family, split, config, rng)
    boxes = [(thing.box, row) for row, named in enumerate(wording.things) for thing in named]
    return SceneSample(
        image=image,
        boxes=np.array([box for box, _ in boxes], dtype=np.float32).reshape(-1, 4),
        labels=np.array([row for _, row in boxes], dtype=np.int64),
        prompt=wording.prompt,
        by_relation=wording.by_relation,
        split=split,
        seed=seed,
        index=index,
        things=things,
    )


def _make(family: str, split: str, config: SceneConfig, rng: Rng) -> tuple[np.ndarray, list[Thing], Wording | None]:
    if family == "relation":
        image, things, comparison = compose_relation(split, config, rng)
        named = [thing for thing in things if thing.kind]
        return image, things, describe_relation(named, comparison, config, rng)
    chosen = choose_things(split, config, rng, rng.integer(*config.things))
    image, things = compose([Plan(thing) for thing in chosen], config, rng)
    if family == "list":
        return image, things, list_names(things, split, config, rng)
    return image, things, describe([thing for thing in things if thing.kind], config, rng)


class SceneDataset(Sequence):
    """Scenes `start` .. `start + length - 1` of a stream, made when asked for: a map-style dataset.

    Index i is the same scene for any number of workers and any order.
    """

    def __init__(
        self, split: str, length: int, seed: int = 0, config: SceneConfig | None = None, start: int = 0
    ) -> None:
        self.split, self.length, self.seed, self.start = split, length, seed, start
        self.config = config or SceneConfig()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> SceneSample:
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        return make_scene(self.split, self.seed, self.start + index, self.config)


def contact_sheet(
    samples: Sequence[SceneSample], columns: int = 4, scale: int = 2, detections: Sequence[dict] | None = None
) -> Image.Image:
    """Scenes side by side with boxes, names and captions.

    Args:
        scale: how much each image is enlarged.
        detections: what to draw in place of the true boxes: per scene a dict with `boxes`, `labels` and perhaps
            `scores`, in pixels of the scene (labels are rows of the caption).
    """
    from ...visualize import draw_detections

    font = ImageFont.load_default(size=11)
    side = samples[0].image.shape[0] * scale
    width, height = side + 4, side + 48
    sheet = Image.new("RGB", (columns * width, -(-len(samples) // columns) * height), "gray")
    for k, sample in enumerate(samples):
        drawn = detections[k] if detections else {"boxes": sample.boxes, "labels": sample.labels}
        boxes = np.asarray(drawn["boxes"], dtype=np.float32).reshape(-1, 4)
        shown = {
            **drawn,
            "boxes": (boxes + np.array([0, 0, 1, 1], np.float32)) * scale - [0, 0, 1, 1],
            "text_labels": [sample.rows[label] for label in drawn["labels"]],
        }
        enlarged = sample.pil.resize((side, side), Image.Resampling.NEAREST)
        cell = Image.new("RGB", (side, side + 44), "white")
        cell.paste(draw_detections(enlarged, shown, line_width=1, font_size=10), (0, 0))
        lines = textwrap.wrap(sample.caption, side // 6)[:3]  # six pixels a letter
        ImageDraw.Draw(cell).multiline_text((2, side + 2), "\n".join(lines), fill="black", font=font)
        sheet.paste(cell, ((k % columns) * width, (k // columns) * height))
    return sheet
