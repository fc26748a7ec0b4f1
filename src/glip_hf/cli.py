# Copyright 2026 The glip_hf authors. MIT licence.
"""The command `glip`: `glip ground`, `glip convert`, `glip info`, `glip evaluate`,
`glip check-data`, `glip export`.

Exit codes: 0 done; 1 something asked for could not be done (no such photo, no such model); 2 wrong
usage. What goes wrong with the user's input is one line on stderr that names the value and the
remedy. Results go to stdout, notes and progress to stderr, so that `--json` can be piped.
"""

import argparse
import glob
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from ._arguments import positive

if TYPE_CHECKING:
    import torch

    from .modeling_glip import GlipForGrounding
    from .processing_glip import GlipProcessor

OK, FAILURE, USAGE = 0, 1, 2
SENTENCE_WORDS = 3  # a single text argument of at least so many words is a sentence, not a name
PHOTO_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif", ".jp2"))
URL_PREFIXES = ("http://", "https://")


class CliError(Exception):
    """What was asked for cannot be done: the message is shown as it is, the command ends with 1."""


class UsageError(CliError):
    """The command line itself is wrong; the command ends with 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments, extra = _build_parser().parse_known_args(argv)
    command = arguments.command
    try:
        # argparse takes one unbroken run of positional arguments: names behind an option are extra
        if extra and (command != "ground" or any(word.startswith("-") for word in extra)):
            unknown = " ".join(extra)
            raise UsageError(f"unrecognized arguments: {unknown}; see glip {command} --help")
        if extra:
            arguments.words += extra
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            return arguments.run(arguments)
    except CliError as error:
        print(f"glip {command}: {error}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else FAILURE
    except BrokenPipeError:  # the reader of our output, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _silence_transformers() -> None:
    """No progress bars for loading and saving weights, which take seconds: stderr is for our lines."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"note: {message}", file=sys.stderr)


def _build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="glip", description="Ground any phrase in any photo.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_ground(commands)
    _add_convert(commands)
    _add_info(commands)
    _add_evaluate(commands)
    _add_check_data(commands)
    _add_export(commands)
    return parser


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


# ---------------------------------------------------------------------------------- glip ground

GROUND_HELP = """\
Find what you name in photos.

  glip ground photo.jpg "cat" "remote control" --model DIR --save annotated.png
  glip ground photo.jpg "two cats on a pink sofa" --model DIR
  glip ground 'holiday/*.jpg' a.png --names cat dog --model DIR --save annotated/ --json

WORDS are photos first (files, a directory, quoted globs, URLs), then names. A single text of three
or more words is read as a sentence: its noun phrases are found and grounded. --names and --caption
say outright which it is."""


def _add_ground(commands: Any) -> None:
    parser = commands.add_parser(
        "ground",
        help="find named things in photos",
        description=GROUND_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("words", nargs="+", metavar="WORDS", help="photos, then names or one sentence")
    add("--model", required=True, metavar="DIR|HUB", help="converted model: directory or Hub id")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--names", nargs="+", metavar="NAME", help="names; WORDS are then all photos")
    text.add_argument("--caption", metavar="TEXT", help="a sentence; WORDS are then all photos")
    add("--phrases", nargs="+", metavar="PHRASE", help="of --caption (default: its noun phrases)")
    add("--save", metavar="PATH", help="annotated picture; a directory for several photos")
    add("--threshold", type=_fraction, default=0.4, metavar="P", help="lowest score (%(default)s)")
    add("--nms", type=_fraction, default=0.6, metavar="IOU", help="of doubles (%(default)s)")
    add("--max-detections", type=positive, default=100, metavar="N", help="a photo (%(default)s)")
    add(
        "--aggregation",
        choices=("mean", "max", "power", "onehot"),
        default="mean",
        help="how the tokens of a name make its score (%(default)s)",
    )
    add("--chunk-size", type=positive, metavar="N", help="names a caption (default: all that fit)")
    add("--json", action="store_true", help="print one JSON document")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: the best there is)")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the model",
    )
    parser.set_defaults(run=_ground)


def _ground(arguments: argparse.Namespace) -> int:
    photos, names, caption = _read_words(arguments)
    targets = _save_targets(arguments.save, photos)
    model, processor = _load(arguments.model, arguments.device, arguments.dtype)

    import torch
    from tqdm import tqdm

    try:
        text = processor(
            text=caption if names is None else names,
            phrases=arguments.phrases,
            chunk_size=arguments.chunk_size,
            return_tensors="pt",
        ).to(model.device)
    except ValueError as error:
        raise CliError(_one_line(error)) from None
    tokens = {name: text[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    with torch.inference_mode():  # the text is encoded once, whatever the number of photos
        words = {
            "text_features": model.get_text_features(**tokens),
            "positive_map": text["positive_map"],
            "label_ids": text["label_ids"],
        }

    records: list[dict[str, Any]] = []
    # disable=None: a bar only where somebody sits in front of it
    quiet = None if len(photos) > 1 else True
    for photo, target in tqdm(list(zip(photos, targets)), unit="photo", disable=quiet):
        record: dict[str, Any] = {"photo": photo}
        try:
            image = _open_photo(photo)
            with torch.inference_mode():
                outputs = model(**_pixels(model, processor, image), **words)
            result = processor.post_process_grounded_object_detection(
                outputs,
                text,
                threshold=arguments.threshold,
                aggregation=arguments.aggregation,
                nms_threshold=arguments.nms,
                max_detections=arguments.max_detections,
            )[0]
            record |= _as_json(result, image)
            if target is not None:
                record["saved"] = _save(image, result, target)
        except CliError as error:
            record["error"] = str(error)
            tqdm.write(f"glip ground: {error}", file=sys.stderr)
        records.append(record)
        if not arguments.json and "error" not in record:
            _print_detections(record, arguments.threshold)
    if arguments.json:
        phrases = {"caption": caption, "phrases": text.text_labels[0]}
        asked = {"names": names} if caption is None else phrases
        document = {"model": arguments.model, **asked, "photos": records}
        print(json.dumps(document, ensure_ascii=False))
    return FAILURE if any("error" in record for record in records) else OK


def _read_words(
    arguments: argparse.Namespace,
) -> tuple[list[str], list[str] | None, str | None]:
    """Photos, and either names or a caption, from the command line.

    A leading word is a photo if it is the first, a URL, an existing file with a picture's suffix,
    or a glob that matches one; the rest are names. With --names or --caption all are photos.
    """
    words = list(arguments.words)
    explicit = arguments.names is not None or arguments.caption is not None
    photos: list[str] = []
    while words and (explicit or not photos or _is_photo(words[0])):
        photos += _expand(words.pop(0))
    names, caption = arguments.names, arguments.caption
    if not explicit:
        if not words:
            raise UsageError('nothing to look for: add names ("cat" "remote control") or a sentence')
        for word in words:
            if Path(word).suffix.lower() in PHOTO_SUFFIXES and not any(c.isspace() for c in word):
                raise UsageError(f"{word}: no such photo (as a name, it goes behind --names)")
        if len(words) == 1 and len(words[0].split()) >= SENTENCE_WORDS:
            caption = words[0]
        else:
            names = words
    if arguments.phrases and caption is None:
        raise UsageError("--phrases belongs to a sentence: give that with --caption")
    for text in [caption] if names is None else names:
        if not text.strip():
            raise UsageError("an empty name or sentence cannot be found in a photo: leave it out")
    return photos, names, caption


def _is_photo(word: str) -> bool:
    if word.startswith(URL_PREFIXES):
        return True
    if glob.has_magic(word) and not os.path.exists(word):
        matches = glob.glob(word, recursive=True)
        return any(Path(match).suffix.lower() in PHOTO_SUFFIXES for match in matches)
    return os.path.isfile(word) and Path(word).suffix.lower() in PHOTO_SUFFIXES


def _expand(word: str) -> list[str]:
    """The photos a word stands for, in order: itself, a glob's matches, a directory's pictures."""
    if word.startswith(URL_PREFIXES) or os.path.isfile(word):
        return [word]
    if os.path.isdir(word):
        found = [p for p in sorted(Path(word).iterdir()) if p.suffix.lower() in PHOTO_SUFFIXES]
        if not found:
            raise CliError(f"{word}: no pictures in this directory")
        return [str(p) for p in found]
    if glob.has_magic(word):
        paths = sorted(path for path in glob.glob(word, recursive=True) if os.path.isfile(path))
        if not paths:
            raise CliError(f"{word}: no file matches")
        return paths
    raise CliError(f"{word}: no such file; photos come first, then names")


def _save_targets(save: str | None, photos: list[str]) -> list[Path | None]:
    """Where each annotated picture goes."""
    if save is None:
        return [None] * len(photos)
    path = Path(save)
    if not (path.is_dir() or save.endswith(("/", os.sep)) or path.suffix == ""):
        if len(photos) > 1:
            raise UsageError(f"--save {save}: {len(photos)} photos need a directory, e.g. --save {path.stem}/")
        Image.init()
        if Image.EXTENSION.get(path.suffix.lower()) not in Image.SAVE:
            raise UsageError(f"--save {save}: {path.suffix} is no picture format; use .png or .jpg")
        return [path]
    used: dict[str, int] = {}
    targets: list[Path | None] = []
    for photo in photos:
        stem = Path(photo.split("?")[0]).stem
        used[stem] = used.get(stem, 0) + 1
        targets.append(path / (f"{stem}.png" if used[stem] == 1 else f"{stem}-{used[stem]}.png"))
    return targets


def _open_photo(photo: str) -> Image.Image:
    """The photo, upright."""
    from .image_reading_glip import load_picture

    try:
        return ImageOps.exif_transpose(load_picture(photo))
    except (OSError, ValueError) as error:
        raise CliError(_one_line(error)) from None


def _pixels(model: "GlipForGrounding", processor: "GlipProcessor", image: Image.Image) -> dict[str, Any]:
    """The model's inputs for one photo, on its device and in its dtype."""
    try:
        inputs = processor(images=image, return_tensors="pt")
    except ValueError as error:
        raise CliError(_one_line(error)) from None
    return inputs.to(model.device, dtype=model.dtype)


def _as_json(result: dict[str, Any], image: Image.Image) -> dict[str, Any]:
    names, labels = result["text_labels"], result["labels"].tolist()
    scores, boxes = result["scores"].tolist(), result["boxes"].tolist()
    detections = [
        {
            "text_label": name,
            "label": label,
            "score": round(score, 4),
            "box": [round(v, 2) for v in box],
        }
        for name, label, score, box in zip(names, labels, scores, boxes)
    ]
    return {"width": image.width, "height": image.height, "detections": detections}


def _print_detections(record: dict[str, Any], threshold: float) -> None:
    print(f"{record['photo']} ({record['width']}x{record['height']})")
    if not record["detections"]:
        print(f"  nothing with a score above {threshold}; try a lower --threshold")
    for found in record["detections"]:
        box = " ".join(f"{v:7.1f}" for v in found["box"])
        print(f"  {found['score']:.2f}  {box}  {found['text_label']}")
    if "saved" in record:
        print(f"  -> {record['saved']}")


def _save(image: Image.Image, result: dict[str, Any], target: Path) -> str:
    from .visualize import draw_detections

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draw_detections(image, result).save(target)
    except OSError as error:
        raise CliError(f"--save {target}: cannot be written ({_one_line(error)})") from None
    return str(target)


def _one_line(error: Exception) -> str:
    """The first line of an error's text, or its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _load(source: str, device: str, dtype: str) -> tuple["GlipForGrounding", "GlipProcessor"]:
    """Model in evaluation mode, on its device, and its processor."""
    import torch

    from .inspection import read_config
    from .modeling_glip import GlipForGrounding
    from .processing_glip import GlipProcessor

    _silence_transformers()
    target = _device(device)
    try:
        config = read_config(source)
    except ValueError as error:
        raise CliError(str(error)) from None
    try:
        model = GlipForGrounding.from_pretrained(source, config=config, dtype=getattr(torch, dtype))
        processor = GlipProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise CliError(f"{source}: cannot be loaded ({_one_line(error)})") from None
    return model.to(target).eval(), processor


def _device(name: str) -> "torch.device":
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise CliError(f"--device {name}: not on this machine; leave it out or use --device cpu") from None
    return device


# ------------------------------------------------------------------------------------ glip info


def _add_info(commands: Any) -> None:
    parser = commands.add_parser(
        "info",
        help="what a model is: variant, sizes, configuration",
        description="Describe a converted model (directory or Hub id) or an original checkpoint. "
        "No weights are loaded, and nothing in a checkpoint is executed.",
    )
    parser.add_argument("source", metavar="DIR|HUB|PTH")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=_info)


def _info(arguments: argparse.Namespace) -> int:
    from .inspection import describe

    try:
        facts = describe(arguments.source)
    except ValueError as error:
        raise CliError(str(error)) from None
    if arguments.json:
        print(json.dumps(facts, ensure_ascii=False))
        return OK
    config = facts.pop("config")
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{part} {count:,}" for part, count in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        elif isinstance(value, int):
            value = f"{value:,}"
        print(f"{name.replace('_', ' ') + ':':22}{'-' if value in (None, '') else value}")
    print("config:")
    print("\n".join(f"  {line}" for line in json.dumps(config, indent=2).splitlines()))
    return OK


# --------------------------------------------------------------------------------- glip convert


def _add_convert(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="original checkpoint to a directory that from_pretrained loads",
        description="Convert an original GLIP checkpoint to a model directory; the details are in "
        "convert/README.md. The variant is recognised from the tensors, and nothing in the file is "
        "executed.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="PTH", help="original checkpoint, in any wrapping")
    add("output", metavar="DIR", help="directory to write")
    add(
        "--tokenizer",
        metavar="DIR|VOCAB|HUB",
        help="tokenizer (default: bert-base-uncased from the Hub)",
    )
    add("--config", metavar="FILE", help="config for sizes that were not released")
    add("--ema", action="store_true", help="take the moving average of the weights")
    add("--force", action="store_true", help="replace an earlier conversion")
    add("--max-shard-size", metavar="SIZE", help="largest weight file (default: 1GB)")
    add("--push-to-hub", metavar="USER/NAME", help="upload the result")
    parser.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> int:
    from .conversion import convert_checkpoint, push_to_hub

    _silence_transformers()
    names = ("tokenizer", "config", "ema", "force", "max_shard_size")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    try:
        result = convert_checkpoint(arguments.checkpoint, arguments.output, **given)
        record = result.record
        size = record.family or "own size"
        print(f"{record.source_name}: {size}, {record.dtype}, sha256 {record.source_sha256}")
        for note in result.notes:
            print(f"note: {note}", file=sys.stderr)
        print(f"-> {result.directory}")
        if arguments.push_to_hub:
            print(f"-> {push_to_hub(result.directory, arguments.push_to_hub)}")
    except (ValueError, OSError) as error:
        raise CliError(str(error)) from None
    return OK


# ------------------------------------------------------------------------------- glip evaluate


def _add_evaluate(commands: Any) -> None:
    from .evaluation.cli import add_arguments

    parser = commands.add_parser("evaluate", help="COCO, LVIS, Flickr30k and ODinW, like the papers")
    add_arguments(parser)
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> int:
    from .evaluation.cli import USER_ERRORS, run

    _silence_transformers()
    try:
        return run(arguments)
    except USER_ERRORS as error:
        raise CliError(str(error)) from None


# ------------------------------------------------------------------------------ glip check-data


def _add_check_data(commands: Any) -> None:
    from .data.cli import add_arguments

    parser = commands.add_parser("check-data", help="everything that is wrong with training data")
    add_arguments(parser)
    parser.set_defaults(run=_check_data)


def _check_data(arguments: argparse.Namespace) -> int:
    from .data.cli import run

    try:
        return run(arguments)
    except (ValueError, OSError, ImportError) as error:
        raise CliError(str(error)) from None


# --------------------------------------------------------------------------------- glip export


def _add_export(commands: Any) -> None:
    parser = commands.add_parser(
        "export",
        help="model to an ONNX file or a torch.export program",
        description="Write a converted model as a graph that runs without this package: NAME.onnx, "
        "with its weights in NAME.onnx.data, or NAME.pt2 for torch.export. See docs/export.md.",
    )
    add = parser.add_argument
    add("--model", required=True, metavar="DIR|HUB", help="converted model: directory or Hub id")
    add("--output", required=True, metavar="FILE", help="NAME.onnx or NAME.pt2")
    add("--height", type=positive, metavar="H", help="of the padded picture, a multiple of 32")
    add("--width", type=positive, metavar="W", help="likewise; with --height")
    add("--dynamic", action="store_true", help="pictures of any size (the default without the two)")
    add("--caption-length", default="dynamic", metavar="T|dynamic", help="tokens (default: any number)")
    add("--opset", type=positive, metavar="N", help="of ONNX, 19 or later (default: 20)")
    add("--check", action="store_true", help="compare with the model on a photo, and time both (ONNX)")
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    output = Path(arguments.output)
    if output.suffix not in (".onnx", ".pt2"):
        raise UsageError(f"--output {output}: name a file .onnx, or .pt2 for a torch.export program")
    if output.suffix == ".pt2" and (arguments.check or arguments.opset):
        raise UsageError(f"--output {output}: --check and --opset are for .onnx files")
    if arguments.dynamic and (arguments.height or arguments.width):
        raise UsageError("--dynamic is for pictures of any size: leave it out, or --height and --width")
    length = arguments.caption_length
    if length != "dynamic" and not length.isdecimal():
        raise UsageError(f"--caption-length {length}: give a number of tokens, or dynamic")
    sizes = {
        "height": arguments.height,
        "width": arguments.width,
        "caption_length": None if length == "dynamic" else int(length),
    }
    model, processor = _load(arguments.model, "cpu", "float32")

    from .export import OPSET, TOLERANCE, check, export_onnx, save_program

    try:
        if output.suffix == ".pt2":
            print(f"-> {save_program(model, output, **sizes)}")
            return OK
        print(f"-> {export_onnx(model, output, **sizes, opset=arguments.opset or OPSET)}")
        if not arguments.check:
            return OK
        figures = check(model, processor, output)
    except (ValueError, OSError, ImportError) as error:
        raise CliError(str(error)) from None
    print(
        f"largest difference: probability {figures['probability']:.1e}, box {figures['box']:.1e} of a side; "
        f"onnxruntime {figures['onnx_seconds']:.2f} s, model {figures['torch_seconds']:.2f} s a photo"
    )
    if max(figures["probability"], figures["box"]) > TOLERANCE:
        raise CliError(f"{output} differs from the model by more than {TOLERANCE}: do not use it")
    return OK


if __name__ == "__main__":
    sys.exit(main())
