# Copyright 2026 The glip_hf authors. MIT licence.
"""`glip check-data`: everything that is wrong with training data, before training starts."""

import argparse
import json
import sys
from typing import Any

from .._extras import require
from ..values_glip import shown
from .common import UsageError, count, fraction

HELP = "everything that is wrong with training data"
DESCRIPTION = """\
Report every kind of damage in annotations and images, with file and id, and whether a run would start.

  glip check-data instances.json --images photos
  glip check-data data.yaml --set split=val      # YOLO; also an ODVG file (.jsonl), or a folder of Pascal VOC files
  glip check-data flickr.json --format mdetr --images flickr30k_images --tokenizer bert-base-uncased
  glip check-data user/dataset --format hub --set split=validation columns='{box_format: xyxy}'
  glip check-data --recipe examples/configs/glip_swin_t_o365_goldg.yaml --data-root DATASET

Exit code 0 if a run with this data would start (without what is damaged), 2 if not."""


# `READERS`, except that of scenes, which are generated
FORMATS = ("coco", "lvis", "mdetr", "odinw", "tsv", "voc", "yolo", "odvg", "hub")

# What readers call the argument FILE, elsewhere `annotations`
NAMES = {"tsv": "yaml_file", "odinw": "task", "hub": "dataset"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "annotations", nargs="?", metavar="FILE", help="annotations; for tsv and odinw their YAML, for hub the data set"
    )
    add("--format", choices=FORMATS, help="of FILE (told from its name: coco, voc, yolo or odvg)")
    add("--images", metavar="DIR", help="folder of the images")
    add("--set", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="the reader's other arguments")
    add("--allow-outside", action="store_true", help="images may lie outside that folder")
    add("--recipe", metavar="YAML", help="check a recipe's sources in place of FILE")
    add("--data-root", metavar="DIR", help="folder that relative paths are resolved against")
    depths = ("decode", "header", "none")
    add("--check-images", choices=depths, default="decode", help="how far to read images (%(default)s)")
    add("--pictures", choices=depths, help=argparse.SUPPRESS)  # its former name, kept for one release
    add("--tokenizer", metavar="DIR|HUB", help="also find captions and phrases that are cut off")
    add("--allow-damage", type=fraction, metavar="SHARE", help="of a file's boxes that may be lost (default 0.5)")
    add("--examples", type=count, default=20, metavar="N", help="findings of each kind to list (%(default)s)")
    add("--json", action="store_true", help="the whole report as JSON")


def run(arguments: argparse.Namespace) -> int:
    from transformers import AutoTokenizer

    from ..conversion.convert import find_tokenizer
    from ..data.check import check_data
    from ..data.sources import guess_source

    if arguments.pictures:
        print(
            "glip check-data: --pictures is --check-images now: this name goes with the next release", file=sys.stderr
        )
        arguments.check_images = arguments.pictures
    root, options = arguments.data_root, {"images": arguments.check_images}
    if (arguments.annotations is None) == (arguments.recipe is None):
        raise UsageError("name a file of annotations, or a --recipe.")
    if arguments.annotations and arguments.format is None:
        try:
            arguments.format = guess_source(arguments.annotations)["format"]
        except FileNotFoundError:  # a finding of the check; it may lie under --data-root
            arguments.format = "coco"
        except ValueError as error:
            raise UsageError(str(error)) from None
    if arguments.annotations and not arguments.images and arguments.format in ("coco", "lvis", "mdetr", "odvg"):
        if not any(assignment.startswith("images=") for assignment in arguments.set):
            raise UsageError(f"--format {arguments.format} needs --images, the folder of the images.")
    if arguments.recipe is None:
        specs = [_spec(arguments)]
        if arguments.allow_damage is not None:
            options["allow_damage"] = arguments.allow_damage
    else:
        from ..training.batches import recipe_sources  # needs the extra `train`
        from ..training.recipe import assign, load_recipe

        # As in training, where the recipe's values count unless the command line gives others.
        given = {"data.root": root, "data.allow_damage": arguments.allow_damage}
        overrides = [assign(key, value) for key, value in given.items() if value is not None]
        recipe = load_recipe(arguments.recipe, [*overrides, *arguments.set])
        specs, root = recipe.data.sources, recipe.data.root

        def start(cache: str) -> None:
            data = recipe.data.model_copy(update={"cache_dir": cache})
            recipe_sources(recipe.model_copy(update={"data": data}))

        options["start"] = start
    if arguments.tokenizer:
        options["tokenizer"] = AutoTokenizer.from_pretrained(find_tokenizer(arguments.tokenizer))
    try:
        report = check_data(specs, root, **options)
    except ValueError as error:  # a data set or format that does not exist
        raise UsageError(str(error)) from None
    if arguments.json:
        print(json.dumps(report.to_dict(), indent=1))
    else:
        print("\n".join(report.lines(arguments.examples)))
    return 2 if report.refusal else 0


def _spec(arguments: argparse.Namespace) -> dict[str, Any]:
    """The data set of the command line; a UsageError for a `--set` that is not KEY=VALUE, the value in YAML."""
    yaml = require("yaml", "train")
    spec = {"format": arguments.format, NAMES.get(arguments.format, "annotations"): arguments.annotations}
    if arguments.images is not None:
        spec["images"] = arguments.images
    if arguments.allow_outside and arguments.format != "tsv":
        spec["allow_outside"] = True
    for assignment in arguments.set:
        key, equals, value = assignment.partition("=")
        try:
            spec[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not (key and equals):
            raise UsageError(f"--set {shown(assignment)} must read KEY=VALUE, an argument of the reader and its value.")
    return spec
