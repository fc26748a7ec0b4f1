# Copyright 2026 The glip_hf authors. MIT licence.
"""The options of `glip evaluate` and `examples/evaluate.py`: one command line for all benchmarks."""

import argparse

from .common import add_device_arguments, add_model_argument, count, fraction, positive

HELP = "COCO, LVIS, Flickr30k, RefCOCO and ODinW, as in the papers"
DESCRIPTION = """\
Evaluate as in the papers; one process, or several under `accelerate launch` or `torchrun`.

  glip evaluate coco   --model DIR --annotations instances_val2017.json --images coco/val2017
  glip evaluate coco   --model DIR --annotations data.yaml
  glip evaluate lvis   --model DIR --annotations lvis_v1_minival_inserted_image_name.json --images coco
  glip evaluate flickr --model DIR --annotations final_flickr_separateGT_test.json --images flickr30k_images
  glip evaluate refcoco --model DIR --annotations finetune_refcoco_val.json --images coco/train2014
  glip evaluate odinw  --model DIR --config configs/odinw_13 --data-root DATASET
  glip evaluate lvis   --score-only predictions.json --annotations gt.json --output out

An interrupted run resumes when it is started again with the same --output."""

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")  # `compilation.MODES`, which only torch could tell

# Of options that belong to some benchmarks, or to others of the options
DEFAULTS = {"prompts": "names", "tokens": "head", "protocol": "any", "overlap": 0.2, "vote_threshold": 0.6}

BENCHMARKS = ("coco", "lvis", "flickr", "refcoco", "refcoco+", "refcocog", "odinw")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("benchmark", choices=BENCHMARKS)
    data = parser.add_argument_group("data").add_argument
    data(
        "--annotations",
        metavar="FILE",
        help="COCO, LVIS, MDETR's Flickr30k or RefCOCO JSON, or Flickr30k Entities' folder; for coco also data.yaml "
        "(YOLO), .jsonl (ODVG) or a folder of Pascal VOC files",
    )
    data("--images", metavar="DIR", help="folder of the images (with --score-only: for the gallery)")
    data("--allow-outside", action="store_true", help="read images that the annotations name outside their folder")
    data("--entities", metavar="DIR", help="flickr: folder with Sentences/ and Annotations/ (default: searched for)")
    data("--subset", choices=("test", "val", "train"), help="flickr (default: from the annotations' name)")
    data("--config", metavar="DIR|FILE", help="odinw: task files (YAML)")
    data("--data-root", metavar="DIR", default=".", help="odinw: folder that paths in task files are relative to")
    data(
        "--split", metavar="NAME", help="of odinw's task files (default: their TEST), of YOLO and VOC (val, else test)"
    )
    share = {"type": fraction, "default": 0.5, "metavar": "SHARE"}
    data("--allow-damage", help="of the boxes that may be damaged and are left out (%(default)s)", **share)
    data("--limit", type=positive, metavar="N", help="the first N images only")

    group = parser.add_argument_group("run")
    speed = group.add_argument
    add_model_argument(speed)
    speed("--output", metavar="DIR", help="default: evaluation/BENCHMARK")
    speed("--fresh", action="store_true", help="discard the predictions of an earlier run in --output")
    speed("--score-only", metavar="FILE", help="score this result file, without a model (odinw: an earlier --output)")
    add_device_arguments(group)
    speed("--batch-size", type=positive, default=1, metavar="N", help="images per forward pass (%(default)s)")
    speed("--pairs", type=positive, metavar="N", help="(image, caption) pairs per forward pass (default: what fits)")
    speed("--workers", type=positive, default=2, metavar="N", help="threads that read images (%(default)s)")
    speed("--on-broken", choices=("fail", "skip"), default="fail", help="images that cannot be read (%(default)s)")
    speed(
        "--compile",
        choices=COMPILE_MODES,
        metavar="MODE",
        help=f"torch.compile in this mode: {', '.join(COMPILE_MODES)}",
    )
    speed("--allow-padding", action="store_true", help="batch images of different sizes: faster, other results")
    speed("--gallery", type=count, default=6, metavar="N", help="best and worst images in the report (%(default)s)")

    rule = parser.add_argument_group("protocol").add_argument  # `dest` where it is a field of `GroundingOptions`
    rule("--standard", action="store_true", help="lvis: 300 detections per image in place of Fixed AP")
    rule(
        "--protocol",
        choices=("any", "merged"),
        default=DEFAULTS["protocol"],
        help="flickr, refcoco: boxes of a phrase (%(default)s)",
    )
    tokens = {"choices": ("head", "all"), "default": DEFAULTS["tokens"]}
    rule("--tokens", help="refcoco: tokens of an expression that score a box (%(default)s)", **tokens)
    rule("--giou", action="store_true", help="refcoco: generalized IoU, as in MDETR's code, in place of the IoU")
    rule("--prompts", choices=("names", "glip"), default=DEFAULTS["prompts"], help="odinw: captions (%(default)s)")
    aggregation = {"dest": "aggregation", "choices": ("mean", "max", "power"), "type": str.lower, "default": "mean"}
    rule("--score-agg", help="how token scores combine into the score of a class (%(default)s)", **aggregation)
    rule("--chunk-size", type=positive, metavar="N", help="class names per caption (lvis: 40, else as many as fit)")
    rule("--max-detections", type=positive, metavar="N", help="per image; lvis: per caption (lvis: 300, else 100)")
    rule("--separator", metavar="TEXT", help='between class names (". ")')
    rule("--prefix", metavar="TEXT", help="before every class name")
    rule("--suffix", metavar="TEXT", help="after every class name")
    rule("--suppress", dest="negative_names", nargs="+", metavar="NAME", help="negative class names")
    rule("--scales", nargs="+", type=positive, default=(), metavar="PIXELS", help="short sides of multi-scale testing")
    rule("--max-size", type=positive, metavar="PIXELS", help="limit of the long side with --scales")
    rule("--flip", action="store_true", help="test mirrored images as well")
    rule("--tile", type=positive, metavar="PIXELS", help="test tiles of this side as well")
    rule(
        "--overlap",
        type=fraction,
        default=DEFAULTS["overlap"],
        metavar="P",
        help="share of a tile that the next shows (%(default)s)",
    )
    iou = {"type": fraction, "default": DEFAULTS["vote_threshold"], "metavar": "IOU"}
    rule("--vote", dest="vote_threshold", help="IoU from which boxes of several views are merged (%(default)s)", **iou)
    rule("--nms", dest="nms_threshold", help="IoU threshold of NMS (%(default)s)", **iou)


def run(arguments: argparse.Namespace) -> int:
    from .evaluate import run

    return run(arguments)
