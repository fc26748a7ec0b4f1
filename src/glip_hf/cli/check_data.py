# Copyright 2026 The glip_hf authors. MIT licence.
"""`glip check-data`: everything that is wrong with training data, before training starts."""

import argparse
import json

HELP = "everything that is wrong with training data"
DESCRIPTION = """\
Report every kind of damage in annotations and images, with file and id.

  glip check-data instances.json --images photos
  glip check-data flickr.json --format mdetr --images flickr30k_images --tokenizer bert-base-uncased
  glip check-data --recipe examples/configs/glip_swin_t_o365_goldg.yaml --data-root DATASET

Exit code 0 without errors (warnings do not count), 1 with."""


FORMATS = ("coco", "lvis", "mdetr", "odinw", "tsv")
"""`READERS` of files; those of the Hub and of scenes need more than a file, and are checked as part of a recipe."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("annotations", nargs="?", metavar="FILE", help="annotations; for tsv and odinw their YAML")
    add("--format", choices=FORMATS, default="coco", help="of FILE (%(default)s)")
    add("--images", metavar="DIR", help="folder of the images")
    add("--recipe", metavar="YAML", help="check a recipe's sources in place of FILE")
    add("--data-root", metavar="DIR", help="folder that relative paths are resolved against")
    add("--pictures", choices=("decode", "header", "none"), default="decode", help="how far to read (%(default)s)")
    add("--tokenizer", metavar="DIR|HUB", help="also find captions and phrases that are cut off")
    add("--examples", type=int, default=20, metavar="N", help="findings of each kind to list (%(default)s)")
    add("--json", action="store_true", help="the whole report as JSON")


def run(arguments: argparse.Namespace) -> int:
    from transformers import AutoTokenizer

    from ..data.check import check_data

    specs, root = _specs(arguments)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer) if arguments.tokenizer else None
    report = check_data(specs, root, images=arguments.pictures, tokenizer=tokenizer)
    print(json.dumps(report.to_dict(), indent=1) if arguments.json else "\n".join(report.lines(arguments.examples)))
    return 0 if report.ok else 1


def _specs(arguments: argparse.Namespace) -> tuple[list[dict], str | None]:
    """What to check, and the folder that its relative paths are resolved against.

    Raises:
        ValueError: for arguments that name nothing to check.
    """
    if (arguments.annotations is None) == (arguments.recipe is None):
        raise ValueError("name a file of annotations, or a --recipe.")
    if arguments.recipe is not None:
        from ..training.recipe import load_recipe  # needs the extra `train`

        data = load_recipe(arguments.recipe).data
        if not data.sources:
            raise ValueError(f"{arguments.recipe} has no data.sources: generated scenes need no check.")
        # As in training, where the recipe's root counts unless the command line gives another.
        return data.sources, arguments.data_root or data.root
    names = {"tsv": "yaml_file", "odinw": "task"}
    spec = {"format": arguments.format, names.get(arguments.format, "annotations"): arguments.annotations}
    if arguments.images is not None:
        spec["images"] = arguments.images
    return [spec], arguments.data_root
