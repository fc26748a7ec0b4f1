# Copyright 2026 The glip_hf authors. MIT licence.
"""Draw the pictures of docs/concepts.md with the shipped model.

    python scripts/draw_concepts.py [DIRECTORY]  # default: docs/images; seconds; needs matplotlib (the extra `eval`)

`positive_maps.webp`: which tokens are which label, for class names and for a caption. `token_scores.webp`: what each
location of the image says to tokens of the caption, and what becomes of it.
"""

import argparse
from pathlib import Path

import matplotlib
import torch

matplotlib.use("agg")
from matplotlib import pyplot

from glip_hf.demo import DEMO_CAPTION, DEMO_NAMES, demo_model, demo_processor, load_demo_image
from glip_hf.processing_glip import GlipProcessor
from glip_hf.visualize import draw_detections, label_color

OUTPUT = Path(__file__).parents[1] / "docs" / "images"
TEXTS = (list(DEMO_NAMES), DEMO_CAPTION)
SHOWN = ((0, "cross"), (1, "cross"), (1, "fish"))
"""Tokens, each of one of `TEXTS`, whose scores are shown over the image."""


def tokens_and_map(processor: GlipProcessor, text: str | list[str]) -> tuple[list[str], list[str], torch.Tensor]:
    """Tokens [T], labels [C] and positive map [C, T], bool, of one caption."""
    inputs = processor(text=text, return_tensors="pt")
    tokens = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    return tokens, inputs.text_labels[0], inputs["positive_map"][0]


def draw_positive_maps(processor: GlipProcessor) -> pyplot.Figure:
    """A panel for each of `TEXTS`: a row for each label, a column for each token, filled where they belong together."""
    parts = [tokens_and_map(processor, text) for text in TEXTS]
    heights = [len(labels) for _, labels, _ in parts]
    figure, panels = pyplot.subplots(len(parts), figsize=(8, 4.4), height_ratios=heights, layout="constrained")
    for panel, text, (tokens, labels, positive) in zip(panels, TEXTS, parts):
        for row in range(len(labels)):
            for column in range(len(tokens)):
                color = [value / 255 for value in label_color(row)] if positive[row, column] else "#eeeeee"
                panel.add_patch(pyplot.Rectangle((column + 0.04, row + 0.08), 0.92, 0.84, color=color))
        panel.set(xlim=(0, len(tokens)), ylim=(len(labels), 0))
        panel.set_xticks([column + 0.5 for column in range(len(tokens))], tokens, rotation=35, ha="left")
        panel.set_yticks([row + 0.5 for row in range(len(labels))], labels)
        panel.xaxis.tick_top()
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        shown = str(text).replace("'", '"')
        panel.set_title(f"text={shown}" if isinstance(text, list) else f'text="{text}"', loc="left", pad=8, fontsize=10)
    return figure


def token_scores(text: str | list[str], threshold: float = 0.4) -> tuple[list[str], torch.Tensor, dict]:
    """Of a text and the shipped image: tokens [T]; scores [T, H, W] in 0..1, of the finest level of the pyramid; the
    detections."""
    model, processor, image = demo_model(), demo_processor(), load_demo_image()
    inputs = processor(images=image, text=text, return_tensors="pt")
    with torch.inference_mode():
        outputs = model(**inputs)
    height, width = outputs.spatial_shapes.reshape(-1, 2)[0].tolist()
    scores = outputs.logits[0, : height * width].sigmoid().T.reshape(-1, height, width)
    found = processor.post_process_grounded_object_detection(outputs, inputs, threshold=threshold)[0]
    return processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]), scores, found


def draw_token_scores() -> pyplot.Figure:
    """The scores of the tokens `SHOWN`, and the detections of the caption."""
    found, image = [token_scores(text) for text in TEXTS], load_demo_image()
    figure, panels = pyplot.subplots(1, len(SHOWN) + 1, figsize=(10, 2.8), layout="constrained")
    for panel, (text, token) in zip(panels, SHOWN):
        tokens, scores, _ = found[text]
        heat = scores[tokens.index(token)].numpy()
        panel.imshow(image.convert("L"), cmap="gray", vmin=-120, extent=(0, 1, 0, 1))
        panel.imshow(heat, cmap="autumn_r", alpha=heat**0.5 * 0.85, vmin=0, vmax=1, extent=(0, 1, 0, 1))
        panel.set_title(f'"{token}" of the {("class names", "caption")[text]}', fontsize=10)
    panels[-1].imshow(draw_detections(image, found[1][2]), extent=(0, 1, 0, 1))
    panels[-1].set_title("boxes of the caption", fontsize=10)
    for panel in panels:
        panel.set_axis_off()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", nargs="?", type=Path, default=OUTPUT, help="directory of the pictures")
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    figures = {"positive_maps": draw_positive_maps(demo_processor()), "token_scores": draw_token_scores()}
    for name, figure in figures.items():
        path = output / f"{name}.webp"
        figure.savefig(path, dpi=150, pil_kwargs={"quality": 85, "method": 6})
        print(path)


if __name__ == "__main__":
    main()
