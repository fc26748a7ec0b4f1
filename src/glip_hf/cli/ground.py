# Copyright 2026 The glip_hf authors. MIT licence.
"""`glip ground`: detections in images for class names or a caption."""

import argparse
import glob
import json
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from functools import partial
from itertools import count
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from PIL import Image
from tqdm import tqdm

from .._extras import require
from ..formats import (
    FOLDERS,
    FORMATS,
    IMAGE_SUFFIXES,
    PLACES,
    ImageDetections,
    check_output,
    detection_records,
    rounded,
    write_json,
)
from ..noun_phrases_glip import read_list, split_names
from ..values_glip import counted, first_line, in_one_line, shown
from .common import (
    CliError,
    UsageError,
    add_device_arguments,
    add_model_argument,
    fraction,
    grounding_options,
    load_model,
    positive,
)

if TYPE_CHECKING:
    import torch

    from ..masks import BoxSegmenter

VIDEO_SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp"))
URL_PREFIXES = ("http://", "https://")

# How text is read by processor, pipeline and command line; docs/ground.md and `glip ground --help` show it
TEXT_RULE = """\
A list of texts is a list of class names: each is looked for as it is written.
A single text of short pieces between full stops, semicolons or commas is such a list, too: "stop sign. orange." is two.
Any other text is a caption: its noun phrases are looked for, "two cats" and "a pink sofa" in "two cats on a pink sofa".
Short: at most five words (eight in lower case between full stops), no sentence; a piece alone has one noun phrase only.
Underscores are spaces, and an explanation as in "bow_(weapon)" is left out; nothing else is changed.
"""

HELP = "detect class names or phrases in images"
DESCRIPTION = f"""\
Find what you name in images.

  glip ground photo.jpg "cat" "remote control" --model DIR --save annotated.png
  glip ground photo.jpg "two cats on a pink sofa" --model DIR
  glip ground 'holiday/*.jpg' a.png --names cat dog --model DIR --save annotated/ --json
  glip ground photos --names cat dog --model DIR --format coco --output found.json
  glip ground clip.mp4 cat dog --model DIR --stride 5 --track --save annotated.mp4

WORDS are images first (files, folders, quoted globs, URLs) or video files, then class names or one text. A folder that
is not the first word ends in a slash:

{TEXT_RULE}
NAME=PROMPT|PROMPT among class names gives the prompts of one: "helmet=hard hat|safety helmet".
Without a text, the class names that a fine-tuned model was trained for are looked for.
--names says outright that all texts are class names (one text may hold several, between commas), --caption that the
text is one whose phrases --phrases may name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("words", nargs="+", metavar="WORDS", help="images, then class names or one caption")
    add_model_argument(add, required=True)
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--names", nargs="+", metavar="NAME", help="class names; WORDS are then all images")
    text.add_argument("--caption", metavar="TEXT", help="a caption; WORDS are then all images")
    add("--phrases", nargs="+", metavar="PHRASE", help="of --caption (default: its noun phrases)")
    add("--save", metavar="PATH", help="annotated image or video; a directory for several")
    add("--stride", type=positive, default=1, metavar="N", help="of videos: every so many frames (%(default)s)")
    add("--track", action="store_true", help="of videos: number the objects, the same in all frames")
    text = "lowest score (0.4); NAME=P is that of one class name, and the option may be repeated"
    add("--threshold", type=threshold, action="append", default=[], metavar="[NAME=]P", help=text)
    text = "IoU threshold of NMS (%(default)s)"
    add("--nms", dest="nms_threshold", type=fraction, default=0.6, metavar="IOU", help=text)
    add("--class-agnostic-nms", action="store_true", help="NMS over all class names, not within each")
    add("--features", action="store_true", help="with --json: the feature vector of each detection")
    add("--max-detections", type=positive, default=100, metavar="N", help="per image; --tile: per tile (%(default)s)")
    add(
        "--masks",
        metavar="MODEL",
        help="a mask for each box by this SAM or SAM 2 model (a directory or on the Hub)",
    )
    add("--tile", type=positive, metavar="PIXELS", help="search large images in tiles of this side, too")
    add("--overlap", type=fraction, metavar="P", help="with --tile: share of a tile that the next one shows, too (0.2)")
    add(
        "--aggregation",
        choices=("mean", "max", "power", "onehot"),
        default="mean",
        help="how token scores combine into the score of a class (%(default)s)",
    )
    add("--chunk-size", type=positive, metavar="N", help="class names per caption (default: as many as fit)")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one JSON document; --json FILE.json writes it there")
    output.add_argument("--format", choices=FORMATS, help="write the format of an annotation tool to --output")
    add("--output", metavar="PATH", help="of --format: a file, for yolo and voc a new folder")
    add("--image-prefix", default="", metavar="TEXT", help="of --format: put before the file names of images")
    add("--batch-size", type=positive, default=1, metavar="N", help="images of one size per forward pass (%(default)s)")
    add("--workers", type=positive, default=2, metavar="N", help="threads that read, draw and save (%(default)s)")
    add_device_arguments(parser)


def threshold(text: str) -> tuple[str | None, float]:
    """A threshold with the class name that it is for, None for all others."""
    name, equals, number = text.rpartition("=")
    return name if equals else None, fraction(number)


def read_prompts(names: list[str]) -> dict[str, list[str]] | None:
    """The prompts of class names of which some are given as `helmet=hard hat|safety helmet`; None if none is. A name
    with one of the two signs only, such as `E=mc2`, is looked for as it is written."""
    prompts: dict[str, list[str]] = {}
    given = False
    for name in names:
        label, equals, own = name.partition("=")
        has_prompts = bool(equals) and ("|" in own or not own.strip())
        label, texts = (label.strip(), [text.strip() for text in own.split("|")]) if has_prompts else (name, [name])
        if not label or not all(texts):
            raise UsageError(f"{shown(name)}: write prompts of a class name as helmet=hard hat|safety helmet")
        prompts.setdefault(label, []).extend(texts)
        given |= has_prompts
    return prompts if given else None


def run(arguments: argparse.Namespace) -> int:
    json_file = take_json_file(arguments)
    paths, names, caption = read_words(arguments)
    thresholds = {None: 0.4, **dict(arguments.threshold)}
    arguments.threshold = min(thresholds.values())
    prompts = read_prompts(names) if names else None
    names = names if prompts is None else list(prompts)
    if names is None and caption is None:
        from ..conversion.restore import read_class_names

        if (names := read_class_names(arguments.model)) is None:
            raise UsageError('nothing to look for: add class names ("cat" "remote control") or a caption')
    if arguments.features and not arguments.json:
        raise UsageError("--features are written with --json: add it")
    targets, file_names = save_targets(arguments.save, paths), read_format(arguments, paths)
    check_videos(arguments, paths)
    from concurrent.futures import ThreadPoolExecutor

    from .._writing import check_place
    from ..inference import GroundingEngine, Request
    from ..postprocess_glip import check_thresholds

    for target in {path.parent: path for path in (*targets, json_file) if path is not None}.values():
        check_place(target)
    if arguments.overlap is not None and arguments.tile is None:
        raise UsageError(f"--overlap {arguments.overlap} is of tiles: add --tile PIXELS")
    try:
        options = grounding_options(
            arguments,
            threshold=thresholds if len(thresholds) > 1 else thresholds[None],
            merged_limit=None if arguments.tile else arguments.max_detections,
            overlap=0.2 if arguments.overlap is None else arguments.overlap,
        )
    except ValueError as error:
        raise UsageError(first_line(error)) from None
    model, processor = load_model(arguments.model, arguments.device, arguments.dtype, arguments.runtime)
    segmenter = None if arguments.masks is None else load_segmenter(arguments.masks, model.device, model.dtype)
    engine, text = GroundingEngine(model, processor, options), caption if names is None else prompts or names
    text_labels = engine.encode(text, arguments.phrases).text_labels[0]
    try:
        check_thresholds(options.threshold, text_labels)
    except ValueError as error:
        raise UsageError(first_line(error)) from None

    records: list[dict[str, Any]] = []
    interrupts: list[KeyboardInterrupt] = []

    def detect_all() -> Iterator[ImageDetections]:
        """The detections of one image after the other, which are printed in passing. They are drawn and saved by
        threads while the model works on the next ones. An interruption ends it with those that are done."""
        asked = {"text": text, "phrases": arguments.phrases, "keep_image": bool(arguments.save or segmenter)}
        requests, waiting = (Request(path, **asked) for path in paths if not _is_video(path)), deque()
        results = engine.ground(requests, skip_broken=True, in_order=True, skip_failed=True)
        todo = list(zip(paths, targets, file_names))

        def of_image(path: str, target: Path | None, file_name: str, record: dict[str, Any]) -> Iterator[Any]:
            """None once it is grounded, and its detections once it is saved, too."""
            found = next(results)
            if found.error is not None:
                raise CliError(first_line(found.error))
            image, found.image, (result,) = found.image, None, found.detections
            if segmenter is not None:
                try:
                    result["masks"] = segmenter(image, result["boxes"])
                except Exception as error:  # another model, of other people: whatever it does, the others are kept
                    cause = f"({type(error).__name__}: {first_line(error)})"
                    raise CliError(f"{path}: --masks {shown(arguments.masks)} failed {cause}") from error
            if arguments.format is None:
                detections = [rounded(one) for one in detection_records(result)]
                record |= {"width": found.width, "height": found.height, "detections": detections}
            saved = None if target is None else savers.submit(_save, image, result, target)
            del image  # the thread's
            yield None
            if saved is not None:
                record["saved"] = saved.result()
            if arguments.format is None and not arguments.json:
                _print_detections(record, arguments.threshold)
            yield ImageDetections(file_name, found.width, found.height, result)

        def steps(path: str, target: Path | None, file_name: str) -> Iterator[ImageDetections | None]:
            record: dict[str, Any] = {"photo": path}
            records.append(record)
            try:
                if _is_video(path):
                    yield None  # after the images before it
                    if interrupts:
                        records.remove(record)
                        return
                    yield from _ground_video(engine, text, arguments, target, file_name, record)
                else:
                    yield from of_image(path, target, file_name, record)
            except CliError as error:  # does not stop the other images
                record["error"] = str(error)
                tqdm.write(f"glip ground: {error}", file=sys.stderr)
            except KeyboardInterrupt:
                records.remove(record)
                raise

        with closing(results), ThreadPoolExecutor(arguments.workers, thread_name_prefix="glip-save") as savers:
            # disable=None: a bar only on a terminal
            try:
                for one in tqdm(todo, unit="image", disable=None if len(paths) > 1 else True):
                    waiting.append(steps(*one))
                    next(waiting[-1], None)
                    if len(waiting) > arguments.workers:
                        yield from waiting.popleft()
                while waiting:
                    yield from waiting.popleft()
            except KeyboardInterrupt as error:
                interrupts.append(error)
                for last in waiting:
                    yield from last
        if interrupts and not records:
            raise interrupts[0]

    def keep(write: Callable[..., Any], *given: Any) -> Any:
        """Do it, again if an interruption comes between: what is found is not lost. A second one ends the program."""
        try:
            return write(*given)
        except KeyboardInterrupt as error:
            if interrupts:
                raise
            interrupts.append(error)
            return write(*given)

    if arguments.format is None:
        deque(detect_all(), maxlen=0)
    else:
        write = FORMATS[arguments.format]
        if segmenter is None:
            keep(write, arguments.output, list(detect_all()), text_labels)
        else:  # masks are large: the writer encodes those of an image before the next one
            write(arguments.output, detect_all(), text_labels)
        if not arguments.output.startswith("/dev/"):  # stdout may be the output itself
            print(f"-> {arguments.output}")
    if arguments.json:
        asked = (
            {"names": names, **({"prompts": prompts} if prompts else {})}
            if caption is None
            else {"caption": caption, "phrases": text_labels}
        )
        document = {"model": arguments.model, **asked, "photos": records}
        if json_file is None:
            print(keep(partial(json.dumps, ensure_ascii=False), document))
        else:
            keep(write_json, json_file, document)
            print(f"-> {json_file}")
    if interrupts:
        print(f"glip ground: {len(records)} of {counted(len(paths), 'image')} done", file=sys.stderr)
        raise interrupts[0]
    return 1 if any("error" in record for record in records) else 0


def load_segmenter(source: str, device: "torch.device", dtype: "torch.dtype") -> "BoxSegmenter":
    """The model of --masks; a CliError if it cannot be loaded."""
    from safetensors import SafetensorError

    from ..conversion.restore import local_directory
    from ..masks import BoxSegmenter

    try:
        return BoxSegmenter.from_pretrained(local_directory(source, "SAM model") or source, device, dtype)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise CliError(f"--masks {shown(source)}: cannot be loaded ({first_line(error)})") from None


def take_json_file(arguments: argparse.Namespace) -> Path | None:
    """The file that --json names, which argparse leaves among the words, and takes it out of them; a UsageError if a
    word names a file .json without --json, or its folder does not exist."""
    files = [word for word in arguments.words if word.lower().endswith(".json")]
    if not files:
        if arguments.json and (other := Path(arguments.words[-1])).suffix.lower() in (".jsonl", ".txt", ".csv"):
            raise UsageError(f"--json {shown(str(other))}: the file must be called .json")
        return None
    if not arguments.json or len(files) > 1:
        raise UsageError(
            f"{shown(files[0])}: neither an image nor a class name; to write JSON: --json {shown(files[0])}"
        )
    arguments.words.remove(files[0])
    if not Path(files[0]).parent.is_dir():
        raise UsageError(
            f"--json {shown(files[0])}: there is no folder {shown(str(Path(files[0]).parent))}; make it first"
        )
    if os.path.isdir(files[0]):
        raise UsageError(f"--json {shown(files[0])} is a folder: name a file")
    if not arguments.words:
        raise UsageError("no image: name images first, then class names or a caption")
    return Path(files[0])


def read_words(arguments: argparse.Namespace) -> tuple[list[str], list[str] | None, str | None]:
    """Image paths, and either class names or a caption, from the command line; neither where all words are images.

    A leading word is an image if it is the first, a URL, an existing file with an image suffix, a directory written
    with a slash, or a glob that matches an image; the rest are class names. With --names or --caption all are images.
    """
    words = list(arguments.words)
    names, caption = arguments.names, arguments.caption
    explicit = names is not None or caption is not None
    paths: list[str] = []
    while words and (explicit or not paths or _is_image(words[0])):
        paths += _expand(words.pop(0))
    if not explicit:
        for word in words:
            is_text = len(word.split()) > 1
            if Path(word).suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and not is_text:
                raise UsageError(f"{word}: no such image (a class name of this form goes after --names)")
            if "*" in word and not is_text or (Path(word).suffix or os.sep in word) and os.path.exists(word):
                kind = "not an image by its name" if os.path.exists(word) else "no file matches"
                raise UsageError(f"{word}: {kind} (--names takes a class name of this form, and WORDS are all images)")
            if os.path.isdir(word) and any(map(_is_image, glob.glob(f"{glob.escape(word)}/*"))):
                print(f"note: {word} is a class name here; the folder is {word}{os.sep}", file=sys.stderr)
        names = read_list(words[0]) if len(words) == 1 else words or None
        caption = words[0] if words and names is None else None
    elif names is not None and len(names) == 1:
        names = split_names(names[0]) or names
    if arguments.phrases and caption is None:
        raise UsageError("--phrases are parts of a caption: give that with --caption")
    texts = names or ([] if caption is None else [caption])
    if not all(text.strip() for text in texts):
        raise UsageError("an empty class name or caption cannot be grounded: leave it out")
    from ..prompts_glip import check_unicode

    try:
        written = paths if arguments.format != "yolo" else []  # it names files, and has no file names in them
        for text in [*texts, *(arguments.phrases or ()), *written]:
            check_unicode(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return paths, names, caption


def check_videos(arguments: argparse.Namespace, paths: list[str]) -> None:
    """A UsageError unless videos can be read, and the options for videos have one; an ImportError without the library
    that reads or tracks."""
    videos = [path for path in paths if _is_video(path)]
    if not videos and (arguments.track or arguments.stride > 1):
        raise UsageError("--stride and --track are for videos, and there is none")
    if videos and arguments.masks is not None:
        raise UsageError(f"--masks is for images, and {videos[0]} is a video: leave it out, or extract the frames")
    for path in videos:
        if path.startswith(URL_PREFIXES):
            raise UsageError(f"{path}: videos are read from files; download it first")
        require("av", "video")
    if arguments.track:
        require("trackers", "track")


def _is_video(word: str) -> bool:
    return os.path.splitext(urlsplit(word).path if word.startswith(URL_PREFIXES) else word)[1].lower() in VIDEO_SUFFIXES


def _is_image(word: str) -> bool:
    """Or a video."""
    if word.startswith(URL_PREFIXES):
        return True
    if glob.has_magic(word) and not os.path.exists(word):
        return any(map(_is_image, glob.glob(word, recursive=True)))
    if os.path.isdir(word):
        return os.sep in word
    return os.path.isfile(word) and (_is_video(word) or Path(word).suffix.lower() in IMAGE_SUFFIXES)


def _expand(word: str) -> list[str]:
    """The images a word stands for, in order: itself, the matches of a glob, the images of a directory."""
    if word.startswith(URL_PREFIXES) or (os.path.exists(word) and not os.path.isdir(word)):  # a file or a pipe
        return [word]
    if os.path.isdir(word):
        files = [p for p in sorted(Path(word).iterdir()) if p.is_file() and not p.name.startswith(".")]
        found = [str(p) for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
        others = [p.name for p in files if p.suffix.lower() not in IMAGE_SUFFIXES]
        if not found:
            raise CliError(f"{word}: no images in this directory")
        if others:
            left = f"{counted(len(others), 'file')} left out, not images by name"
            print(f"note: {word}: {left} ({in_one_line(others)})", file=sys.stderr)
        return found
    if glob.has_magic(word):
        found = sorted(path for path in glob.glob(word, recursive=True) if os.path.isfile(path))
        if not found:
            raise CliError(f"{word}: no file matches")
        return found
    raise CliError(f"{word}: no such file; images come first, then class names")


def save_targets(save: str | None, paths: list[str]) -> list[Path | None]:
    """Where each annotated image goes: never to another's place, and never to that of an image itself."""
    if save is None:
        return [None] * len(paths)
    if not save:
        raise UsageError("--save is empty: name a file, or a directory such as annotated/")
    path = Path(save)
    taken = {os.path.realpath(source) for source in paths}
    if not (path.is_dir() or save.endswith(("/", os.sep)) or path.suffix == ""):
        if len(paths) > 1:
            raise UsageError(f"--save {save}: {len(paths)} images need a directory, e.g. --save {path.stem}/")
        if os.path.realpath(path) in taken:
            raise UsageError(f"--save {save} would replace the image itself: name another file")
        if _is_video(paths[0]):
            if not _is_video(save):
                raise UsageError(f"--save {save}: a video is saved as .mp4 or .webm")
            return [path]
        Image.init()
        if Image.EXTENSION.get(path.suffix.lower()) not in Image.SAVE:
            raise UsageError(f"--save {save}: {path.suffix} is not a supported image format; use .png or .jpg")
        return [path]
    numbers: dict[str, Iterator[int]] = {}
    targets: list[Path | None] = []
    for source in paths:
        stem, suffix = Path(source.split("?")[0]).stem, ".mp4" if _is_video(source) else ".png"
        number, target = numbers.setdefault(stem, count(2)), path / f"{stem}{suffix}"
        while os.path.realpath(target) in taken:
            target = path / f"{stem}-{next(number)}{suffix}"
        taken.add(os.path.realpath(target))
        targets.append(target)
    return targets


def read_format(arguments: argparse.Namespace, paths: list[str]) -> list[str]:
    """What --format calls each image: the prefix, and its path from the folder that holds all images. A frame of
    `clip.mp4` is `clip/000012.jpg`. A UsageError for an output that cannot be written, or images that could not be told
    apart in it."""
    if arguments.format is None:
        if arguments.output or arguments.image_prefix:
            raise UsageError(f"--output and --image-prefix belong to --format ({', '.join(FORMATS)})")
        return paths
    if arguments.output is None:
        raise UsageError(f"--format {arguments.format} needs --output PATH, where it is written")
    is_folder, prefix = arguments.format in FOLDERS, PurePosixPath(arguments.image_prefix)
    if is_folder and (".." in prefix.parts or (prefix.is_absolute() and arguments.format == "voc")):
        raise UsageError(f"--image-prefix {shown(arguments.image_prefix)} leads out of the folder: name one inside")
    try:
        check_output(arguments.output, is_folder)
    except ValueError as error:
        raise UsageError(f"--output {error}") from None
    if os.path.realpath(arguments.output) in map(os.path.realpath, paths):
        raise UsageError(f"--output {shown(arguments.output)} would replace the image itself: name another file")
    for option in ("masks", "track"):
        if getattr(arguments, option) and arguments.format not in PLACES[option]:
            lacks = f"--format {arguments.format} has no place for what --{option} gives"
            if arguments.save is None:
                raise UsageError(f"{lacks}: leave it out, or write {', '.join(PLACES[option])}")
            print(f"glip ground: {lacks}: only the drawings of --save show it", file=sys.stderr)
    local = [os.path.dirname(os.path.abspath(path)) for path in paths if not path.startswith(URL_PREFIXES)]
    folder, names, owners = os.path.commonpath(local or [os.getcwd()]), [], {}
    for path in paths:
        is_url = path.startswith(URL_PREFIXES)
        name = (
            unquote(urlsplit(path).path).rpartition("/")[2]
            if is_url
            else Path(os.path.relpath(path, folder)).as_posix()
        )
        key = os.path.splitext(name)[0] if is_folder or _is_video(path) else name
        if key in owners:
            raise UsageError(f"--format {arguments.format}: {owners[key]} and {path} would both be called {key}")
        owners[key] = path
        names.append(arguments.image_prefix + name)
    for video in filter(_is_video, paths):  # its frames are called like images in a folder
        frame = re.compile(re.escape(next(key for key in owners if owners[key] == video)) + r"/\d{6,}(\.jpg)?")
        if other := next((owners[key] for key in owners if frame.fullmatch(key)), None):
            raise UsageError(f"--format {arguments.format}: a frame of {video} and {other} could be called the same")
    return names


def _ground_video(
    engine: Any, text: Any, arguments: argparse.Namespace, target: Path | None, file_name: str, record: dict[str, Any]
) -> Iterator[ImageDetections]:
    """Detections in the frames of a video, which are drawn, printed and entered in `record` in passing; a CliError for
    one that cannot be read to its end or written, when what was found until then is kept."""
    from ..video import Video, ground_frames, write_video
    from ..visualize import draw_detections

    track, stride, errors, index = None, arguments.stride, [], -1
    try:
        video = Video(record["photo"])
        if arguments.track:
            scores = dict.fromkeys(("track_activation_threshold", "high_conf_det_threshold"), arguments.threshold)
            track = (
                require("trackers", "track").ByteTrackTracker(frame_rate=float(video.rate) / stride, **scores).update
            )

        def readable() -> Iterator[Any]:
            try:
                yield from video
            except ValueError as error:
                errors.append(error)

        found = ground_frames(engine, readable(), text, arguments.phrases, stride=stride, track=track)
        total = -(-video.count // stride) or None
        with nullcontext() if target is None else write_video(target, video.rate / stride) as write:
            for index, image, result in tqdm(found, total=total, unit="frame", disable=None):
                height, width = image.shape[:2]
                if arguments.format is None:
                    detections = [rounded(one) for one in detection_records(result)]
                    frame = {"frame": index, "time": round(float(index / video.rate), 3), "detections": detections}
                    record |= {"width": width, "height": height, "frame_rate": round(float(video.rate), 3)}
                    record.setdefault("frames", []).append(frame)
                    if not arguments.json:
                        _print_detections(
                            {**record, **frame, "photo": f"{record['photo']} frame {index}"}, arguments.threshold
                        )
                if write is not None:
                    write(draw_detections(image, result))
                yield ImageDetections(f"{os.path.splitext(file_name)[0]}/{index:06d}.jpg", width, height, result)
            if errors and index < 0:
                raise errors[0]
        if target is not None:
            record["saved"] = str(target)
            if arguments.format is None and not arguments.json:
                print(f"  -> {target}")
        if errors:
            raise errors[0]
    except (OSError, ValueError) as error:
        raise CliError(first_line(error)) from None


def _print_detections(record: dict[str, Any], threshold: float) -> None:
    print(f"{record['photo']} ({record['width']}x{record['height']})")
    if not record["detections"]:
        print(f"  nothing with a score above {threshold}; try a lower --threshold")
    for found in record["detections"]:
        box = " ".join(f"{v:7.1f}" for v in found["box"])
        track = f"#{found['track_id']} " if found.get("track_id", -1) >= 0 else ""
        print(f"  {found['score']:.2f}  {box}  {track}{found['text_label']}")
    if "saved" in record:
        print(f"  -> {record['saved']}")


def _save(image: Image.Image, result: dict[str, Any], target: Path) -> str:
    from .._writing import replacing
    from ..visualize import draw_detections

    try:
        with replacing(target) as path:
            draw_detections(image, result).save(path, compress_level=1)  # of PNG: the same pixels in 2/3 of the time
    except OSError as error:
        raise CliError(f"--save {shown(str(target))}: {error.strerror or first_line(error)}") from None
    return str(target)
