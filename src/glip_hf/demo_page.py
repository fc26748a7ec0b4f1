# Copyright 2026 The glip_hf authors. MIT licence.
"""A page in the browser that grounds class names or a caption: behind `glip demo` and `examples/space/`.

    page = build_page(model, processor)  # a gradio.Blocks
    page.launch()

The model runs once per image and text and finds everything above `LOWEST`; the threshold only chooses what is shown.
"""

import html
import random
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ._extras import require
from .data.scenes import COLORS, KINDS, PATTERNS, SceneConfig, make_scene
from .demo import DEMO_CAPTION, DEMO_IMAGE, DEMO_NAMES
from .formats import ImageDetections, write_csv
from .image_processing_pil_glip import load_image, upright
from .inference import Detections, GroundingEngine, GroundingOptions, Request
from .noun_phrases_glip import split_names
from .visualize import as_seen, draw_detections, label_color

if TYPE_CHECKING:
    import gradio

LOWEST = 0.05  # score, below which nothing is kept
SHOWN_SIDE = 1280  # pixels of the longer side: larger images are shown smaller, since each name adds a mask
KEPT_CAPTIONS = 64  # whose text features are kept for the next request
KEPT_SECONDS = 3600  # of what a visitor uploaded and found
READINGS = ("automatic", "class names", "caption")
SCROLL = "() => document.getElementById('found').scrollIntoView({block: 'nearest', behavior: 'smooth'})"  # on a phone
HEADERS = ("name", "score", "x1", "y1", "x2", "y2")
INTRODUCTION = "# GLIP\nName anything, or describe it in a caption, and get boxes."
SCENES_ONLY = " This small model knows generated scenes alone; for photos, load a converted GLIP."
SCENES = f"""\
Scenes are made of {", ".join(KINDS)}; in {", ".join(COLORS)}; {", ".join(PATTERNS)}. A caption may tell two like things
apart: left of, right of, above, below, near."""


@dataclass(frozen=True)
class Found:
    """What was found in an image.

    Attributes:
        file_name, size: of the image; width and height in pixels, upright.
        image: as it is shown, RGB.
        detections: of scores from `LOWEST` on; boxes in pixels of `size`.
        looked_for: class names or phrases.
        seconds: that the model took.
        notes: what the processor warns of in the text.
    """

    file_name: str
    size: tuple[int, int]
    image: Image.Image
    detections: Detections
    looked_for: list[str]
    seconds: float
    notes: tuple[str, ...] = ()

    def above(self, threshold: float) -> Detections:
        """The detections whose score is at least `threshold`: the first ones."""
        number = int((self.detections["scores"] >= threshold).sum())
        return {name: values[:number] for name, values in self.detections.items()}


def find(engine: GroundingEngine, path: str | None, text: str | None, reading: str = READINGS[0]) -> Found:
    """Ground a text in an image file.

    Args:
        engine: with `threshold=LOWEST`.
        path: of the image; None if there is none yet.
        text: class names between commas, semicolons or full stops, or a caption.
        reading: which of the two (`READINGS`); the first decides as `glip ground` does.

    Raises:
        ValueError, OSError: for no image, no text, or what cannot be read.
    """
    if not path:
        raise ValueError("There is no image yet: choose one first.")
    if not text or not text.strip():
        raise ValueError("There is nothing to look for: type class names or a caption.")
    asked: Any = {"class names": split_names(text), "caption": [text]}.get(reading, text)
    phrases = [None] if reading == "caption" else None
    try:
        image = upright(load_image(path))
    except (OSError, ValueError) as error:  # visitors need not know the folders of this machine
        raise ValueError(str(error).replace(path, Path(path).name)) from None
    began = time.perf_counter()
    (grounded,) = engine.ground([Request(image, asked, phrases)])
    seconds = time.perf_counter() - began
    shown = as_seen(image)
    shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    with warnings.catch_warnings(record=True) as caught:  # of each request: the engine keeps texts that it has read
        warnings.simplefilter("always")
        looked_for = engine.tokenize(asked, phrases).text_labels[0]
    notes = tuple(str(warning.message) for warning in caught)
    return Found(Path(path).name, image.size, shown, grounded.detections[0], looked_for, seconds, notes)


def annotations(size: tuple[int, int], shown: Detections) -> tuple[list[tuple[np.ndarray, str]], dict[str, str]]:
    """For `gr.AnnotatedImage`: one mask per name, so that all boxes of a name light up together, and its colour.

    Args:
        size: width and height of the image as it is shown, in pixels.
        shown: detections with `boxes` in pixels of that image.

    Returns:
        Masks [H, W] of opacities 0..1, of the outlines and, faintly, the insides of the boxes, with the name and, if
        there are several, the number of its boxes; the colour "#rrggbb" of each.
    """
    width, height = size
    line = max(2, round(max(size) / 250))
    numbers = Counter(shown["text_labels"])
    masks: dict[str, np.ndarray] = {}
    colors: dict[str, str] = {}
    boxes = shown["boxes"].round().long().tolist()
    for name, label, (left, top, right, bottom) in zip(shown["text_labels"], shown["labels"].tolist(), boxes):
        title = f"{name} \N{MULTIPLICATION SIGN} {numbers[name]}" if numbers[name] > 1 else name
        mask = masks.setdefault(title, np.zeros((height, width)))
        colors[title] = "#{:02x}{:02x}{:02x}".format(*label_color(label))
        box = mask[max(top, 0) : bottom + 1, max(left, 0) : right + 1]
        outline = np.ones_like(box, dtype=bool)
        outline[line:-line, line:-line] = False
        np.maximum(box, np.where(outline, 1, 0.15), out=box)
    return [(mask, title) for title, mask in masks.items()], colors


def rows(shown: Detections) -> list[list[Any]]:
    """A table of `HEADERS`, the best first; boxes xyxy in pixels of the image."""
    columns = zip(shown["text_labels"], shown["scores"].tolist(), shown["boxes"].tolist())
    return [[name, round(score, 3), *(round(v, 1) for v in box)] for name, score, box in columns]


def describe(found: Found, threshold: float) -> str:
    """A paragraph of HTML: what was looked for, how much of it is shown, and what to do if that is nothing."""
    number, (names, scores) = len(found.above(threshold)["boxes"]), map(found.detections.get, ("text_labels", "scores"))
    cut = partial(shorten, width=100, placeholder=" ...")
    looked_for = ", ".join(map(cut, found.looked_for[:20]))
    looked_for += f" and {len(found.looked_for) - 20} more" if len(found.looked_for) > 20 else ""
    text = f"<b>{number} found</b> in {found.seconds:.1f} s, looking for: {html.escape(looked_for)}."
    if names and not number:
        text += (
            f" The best is {html.escape(cut(names[0]))} with a score of {scores[0]:.2f}: lower the threshold to see it."
        )
    return f"<p>{text}</p>" + "".join(f"<p>Note: {html.escape(note)}</p>" for note in found.notes)


def draw_scene() -> tuple[Image.Image, str]:
    """A fresh scene of 480 x 480 pixels, and a caption in which only a relation tells two like things apart."""
    scene = make_scene("relations", random.randrange(2**32), 0, SceneConfig(resolution=480))
    return scene.pil, scene.caption


def build_page(model: Any, processor: Any, scenes: bool = False) -> "gradio.Blocks":
    """The page, ready to `launch`.

    Args:
        model, processor: as `GroundingEngine` takes them.
        scenes: offer generated scenes to try, for the shipped model.

    Raises:
        ImportError: if gradio is not installed; names the extra.
    """
    gr = require("gradio", "demo")
    engine = GroundingEngine(model, processor, GroundingOptions(threshold=LOWEST, workers=1), KEPT_CAPTIONS)

    def show(found: Found | None, threshold: float) -> Iterator[Any]:
        if found is None:
            yield [gr.skip() for _ in outputs]
            return
        shown = found.above(threshold)
        scaled = {**shown, "boxes": shown["boxes"] * (found.image.width / found.size[0])}
        masks, colors = annotations(found.image.size, scaled)
        with tempfile.TemporaryDirectory() as folder:  # gradio has copied the files when it asks for the next value
            table, drawn = Path(folder, "detections.csv"), Path(folder, "detections.png")
            write_csv(table, [ImageDetections(found.file_name, *found.size, shown)])
            draw_detections(found.image, scaled).save(drawn)
            yield [
                gr.AnnotatedImage((found.image, masks), color_map=colors),
                describe(found, threshold),
                rows(shown),
                gr.DownloadButton(value=str(table), interactive=True),
                gr.DownloadButton(value=str(drawn), interactive=True),
            ]

    def ground(path: str | None, text: str, reading: str, threshold: float) -> Iterator[Any]:
        try:
            found = find(engine, path, text, reading)
        except (OSError, ValueError) as error:
            raise gr.Error(html.escape(str(error)), duration=None) from None
        for values in show(found, threshold):
            yield [*values, found]

    with gr.Blocks(title="GLIP", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        gr.Markdown(INTRODUCTION + SCENES_ONLY * scenes)
        kept = gr.State(time_to_live=KEPT_SECONDS)
        with gr.Row():
            with gr.Column():
                first_image, first_text = (str(DEMO_IMAGE), ", ".join(DEMO_NAMES)) if scenes else (None, None)
                image = gr.Image(first_image, type="filepath", image_mode=None, label="Image", height=400)
                # Gradio opens the file first, and of one that it cannot read visitors are told "Error" alone.
                image.preprocess = lambda given: given and given.path
                hint = "cat, remote control   or   two cats on a pink sofa"
                text = gr.Textbox(first_text, label="What to look for", placeholder=hint)
                button = gr.Button("Find", variant="primary")
                threshold = gr.Slider(LOWEST, 0.95, 0.4, step=0.01, label="Lowest score")
                reading = gr.Radio(READINGS, value=READINGS[0], label="Read the text as")
            with gr.Column():
                label = "Found: point at a name, and its boxes light up"
                seen = gr.AnnotatedImage(label=label, format="png", height=400, elem_id="found")
                summary = gr.HTML()
                table = gr.Dataframe(headers=list(HEADERS), label="Boxes in pixels", interactive=False)
                with gr.Row():
                    files = [gr.DownloadButton(name, interactive=False) for name in ("Table (CSV)", "Image (PNG)")]
        if scenes:
            gr.Markdown(SCENES)
            gr.Examples([[first_image, first_text], [first_image, DEMO_CAPTION]], [image, text])
            gr.Button("Draw another scene").click(draw_scene, None, [image, text], api_name=False)
        outputs = [seen, summary, table, *files]
        gr.on(
            [button.click, text.submit],
            ground,
            [image, text, reading, threshold],
            [*outputs, kept],
            api_name="ground",
        ).success(None, js=SCROLL)
        threshold.input(show, [kept, threshold], outputs, api_name=False, trigger_mode="always_last")
    return page
