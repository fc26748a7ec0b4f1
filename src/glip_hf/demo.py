# Copyright 2026 The glip_hf authors. MIT licence.
"""A small trained GLIP and an image that come with the package: for `make demo`, README, examples and tests.

    model, processor = demo_model(), demo_processor()      # GlipForGrounding.from_pretrained(DEMO_MODEL) is the same
    image = load_demo_image()

The model knows the objects, colours, patterns and relations of generated scenes (`data/scenes`), nothing else.
`accelerate launch examples/pretrain.py` trains it; its card, `DEMO_MODEL/README.md`, states how, and its metrics.
"""

from pathlib import Path

from PIL import Image

from .configuration_glip import GlipConfig
from .modeling_glip import GlipForGrounding
from .processing_glip import GlipProcessor

ASSETS = Path(__file__).parent / "assets"
VOCABULARY = ASSETS / "vocab.txt"
DEMO_MODEL = ASSETS / "glip-scenes"
DEMO_IMAGE = ASSETS / "scene.png"
DEMO_CAPTION = "the dotted yellow cross to the left of a fish"
DEMO_NAMES = ("yellow cross", "green star", "fish", "white heart")


def scenes_config() -> GlipConfig:
    """The sizes of the shipped model, to train it anew: all parts at reduced width, 2.3 M parameters.

    No dropout of any kind: no scene is seen twice. Anchors of 32 pixels and up, for objects of 19 to 64. Windows of 5
    feature-map cells, which divide the feature maps of images of 160 pixels without padding. Wider initial weights in
    Swin, zero-initialised offsets of the sampling points, and contrastive alignment besides the dot product: with the
    initialisation of the original, which suits long training, colours and shapes take several times as long to be
    grounded in words (docs/pre-training.md).
    """
    return GlipConfig.from_pretrained(DEMO_MODEL)


def demo_model() -> GlipForGrounding:
    """The shipped model, in evaluation mode."""
    return GlipForGrounding.from_pretrained(DEMO_MODEL).eval()


def demo_processor(shortest_edge: int = 160) -> GlipProcessor:
    """The processor of the shipped model, with another image size than in training if asked for."""
    processor = GlipProcessor.from_pretrained(DEMO_MODEL)
    processor.image_processor.size = {"shortest_edge": shortest_edge, "longest_edge": round(shortest_edge * 5 / 3)}
    return processor


def load_demo_image() -> Image.Image:
    """The image that the package ships, 480 x 480 RGB: a scene that no training stream can contain
    (`scripts/draw_scene.py`).
    """
    with Image.open(DEMO_IMAGE) as image:
        return image.convert("RGB")


DEMO_PHOTO, load_demo_photo = DEMO_IMAGE, load_demo_image  # former names, kept for one release
