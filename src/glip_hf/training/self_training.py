# Copyright 2026 The glip_hf authors. MIT licence.
"""Self-training: a teacher grounds the noun phrases of captions in their images, and a student trains on its boxes.

Described in GLIP's paper (arXiv 2112.03857, section 3.3); its code was never released. An image-caption pair becomes a
grounding record: the noun phrases of the caption, found offline, are grounded in one forward pass; boxes above a
threshold are kept after NMS; boxes that nearly coincide become one with all of their phrases, as in MDETR's data.
"""

import glob
import json
import os
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm
from transformers.utils import logging

from ..boxes_glip import box_iou
from ..data.shards import (
    FORMATS,
    GroundedPair,
    Pair,
    UnreadableShard,
    file_system,
    read_pairs,
    reader_spec,
    shard_format,
    shard_name,
    write_bytes,
    write_grounded,
)
from ..evaluation.run import fingerprints
from ..inference import Grounded, GroundingEngine, GroundingOptions, Request
from ..modeling_glip import GlipForGrounding
from ..noun_phrases_glip import noun_phrases
from ..processing_glip import GlipProcessor
from ..prompts_glip import Span
from ..runs import FolderLock, Manifest, RunFolderError, claim, environment, file_digest
from ..values_glip import counted, in_one_line, shown

logger = logging.get_logger(__name__)

OUTCOMES = ("labelled", "no_box", "no_phrase", "no_caption", "broken_image")
"""The outcomes of a pair; every count of a shard is one of these, or `boxes`."""

STATS_ENDING, INPUT = ".stats.json", "input"
PART_BYTES = 64 << 20
"""A part of a shard with more bytes of images ends early."""
REPORT = "report"
"""The folder, in that of the labels, where a Ray cluster reports on each pair (see `glip_hf.ray`)."""
MADE = (f"*{STATS_ENDING}", "*.part-[0-9]*.parquet", "*.part-[0-9]*.tar", f"{REPORT}/*.part-[0-9]*.parquet")


@dataclass
class LabelOptions:
    """How a teacher labels.

    Attributes:
        threshold: lowest score of a box that is kept.
        nms_threshold: IoU threshold of NMS among the boxes of a phrase.
        merge_threshold: IoU from which boxes of several phrases become one.
        max_detections: boxes per image, before they are merged.
        batch_size: images per forward pass.
    """

    threshold: float = 0.5
    nms_threshold: float = 0.6
    merge_threshold: float = 0.95
    max_detections: int = 100
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name in ("threshold", "nms_threshold", "merge_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie between 0 and 1.")
        if self.batch_size < 1 or self.max_detections < 1:
            raise ValueError(f"{self}: batch_size and max_detections must be at least 1.")


def merge_boxes(boxes: Tensor, labels: Tensor, threshold: float) -> list[tuple[int, list[int]]]:
    """Groups of boxes that nearly coincide: the row of each group's best box, and all labels of the group.

    Args:
        boxes: [K, 4] xyxy, by descending score; labels: [K].
    """
    ious = box_iou(boxes, boxes)
    groups: list[tuple[int, list[int]]] = []
    for row, label in enumerate(labels.tolist()):
        for best, members in groups:
            if ious[row, best] >= threshold:
                if label not in members:
                    members.append(label)
                break
        else:
            groups.append((row, [label]))
    return groups


def is_written(pair: Pair) -> bool:
    """Whether it has a caption."""
    return bool(pair.caption and pair.caption.strip())


def split_parts(pairs: Iterable[Pair], batch_size: int, size: int) -> Iterator[list[Pair]]:
    """The pairs of a shard in parts of about `size`, whose labels are those of the whole shard to the last bit.

    Images that share a forward pass are padded to one size, which changes results slightly; so a part ends where a pass
    of the whole shard does, after a multiple of `batch_size` captions with noun phrases.
    """
    part: list[Pair] = []
    asked = length = 0
    for pair in pairs:
        if (len(part) >= size or length > PART_BYTES) and asked % batch_size == 0:
            yield part
            part, asked, length = [], 0, 0
        part.append(pair)
        asked += is_written(pair) and len(noun_phrases(pair.caption)) > 0
        length += len(pair.image or b"")
    if part:
        yield part


class CaptionLabeller:
    """A teacher that grounds pairs.

    Args:
        model, processor: the teacher.
        options: see `LabelOptions`.
        phrases: finds the spans of a caption to look for; default `noun_phrases`.
    """

    def __init__(
        self,
        model: GlipForGrounding,
        processor: GlipProcessor,
        options: LabelOptions | None = None,
        phrases: Callable[[str], Sequence[Span]] = noun_phrases,
    ) -> None:
        self.model, self.processor, self.phrases = model, processor, phrases
        self.options = options or LabelOptions()
        chosen = GroundingOptions(
            threshold=self.options.threshold,
            nms_threshold=self.options.nms_threshold,
            max_detections=self.options.max_detections,
            merged_limit=self.options.max_detections,
            allow_padding=True,
            batch_size=self.options.batch_size,
            pairs=self.options.batch_size,
        )
        self.engine = GroundingEngine(model, processor, chosen)

    def label(self, pairs: Iterable[Pair]) -> Iterator[tuple[str, GroundedPair | None, str]]:
        """For every pair, in order: one of `OUTCOMES`, the record if it is `labelled`, and a remark."""
        waiting: deque[tuple[Pair, list[Span], str]] = deque()

        def requests() -> Iterator[Request]:
            for pair in pairs:
                written = is_written(pair)
                spans = list(self.phrases(pair.caption)) if written else []
                waiting.append((pair, spans, "" if spans else "no_phrase" if written else "no_caption"))
                if spans:
                    yield Request(b"" if pair.image is None else pair.image, [pair.caption], spans=[spans])

        for found in self.engine.ground(requests(), skip_broken=True):  # in order: all images share batches
            while waiting[0][2]:
                yield waiting.popleft()[2], None, ""
            yield self._outcome(*waiting.popleft()[:2], found)
        for _, _, outcome in waiting:
            yield outcome, None, ""

    def _outcome(self, pair: Pair, spans: Sequence[Span], found: Grounded) -> tuple[str, GroundedPair | None, str]:
        if found.error is not None:
            return "broken_image", None, f"{pair.key}: {found.error}"
        boxes, scores, labels = (found.detections[0][name] for name in ("boxes", "scores", "labels"))
        objects = []
        for row, merged in merge_boxes(boxes, labels, self.options.merge_threshold):
            x1, y1, x2, y2 = boxes[row].tolist()
            corner_and_size = x1, y1, x2 - x1 + 1, y2 - y1 + 1  # both corners lie inside the box
            objects.append(
                {
                    "bbox": [round(value, 3) for value in corner_and_size],
                    "tokens_positive": [list(spans[label]) for label in sorted(merged)],
                    "score": round(scores[row].item(), 6),
                }
            )
        if not objects:
            return "no_box", None, ""
        return "labelled", GroundedPair(pair, found.width, found.height, objects), ""


def unique_id(shard: str, key: str) -> str:
    """The id of a pair over all shards; a slash would be a folder in a tar file."""
    return f"{shard_name(shard)}-{key}".replace("/", "-")


def label_shard(
    labeller: CaptionLabeller, shard: str, output: str, caption_column: str | None = None, progress: Any = None
) -> Counter:
    """Label one shard into the file `output`; nothing is written if no pair gets a box.

    Returns:
        the number of pairs with each of `OUTCOMES`, and of `boxes`.
    """
    counts: Counter = Counter()
    kept: list[GroundedPair] = []
    remarks: list[str] = []
    with warnings.catch_warnings():
        # A phrase beyond the 256th token scores 0, which is all that can be done here.
        warnings.filterwarnings("ignore", message="the caption has more than")
        for outcome, grounded, remark in labeller.label(read_pairs(shard, caption_column)):
            counts[outcome] += 1
            if grounded is not None:
                counts["boxes"] += len(grounded.objects)
                grounded.pair.key = unique_id(shard, grounded.pair.key)
                kept.append(grounded)
            if remark:
                remarks.append(remark)
            if progress is not None:
                progress.update()
    if remarks:
        logger.warning(f"{shard}: {counted(len(remarks), 'broken image')}: {in_one_line(remarks)}")
    if kept:
        write_grounded(output, kept)
    return counts


def _read_stats(fs: Any, path: str) -> tuple[Counter, str | None]:
    """Counts of a finished shard, and the digest of its input if it was noted."""
    try:
        content = json.loads(fs.cat_file(path))
        identity = content.pop(INPUT, None)
        if not all(name in (*OUTCOMES, "boxes") and type(count) is int for name, count in content.items()):
            raise ValueError("other entries than counts")
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({shown(str(error))}): delete it to label the shard again.") from error
    return Counter(content), identity


def claim_labels(
    labeller: CaptionLabeller,
    output: str,
    format: str | None,
    caption_column: str | None,
    overwrite: bool = False,
    pairs_per_part: int | None = None,
) -> FolderLock | None:
    """Lock the folder of a labelling and note what made it (see `runs.claim`); nothing for folders on the Hub.

    Args:
        pairs_per_part: of a labelling by a Ray cluster; None for one of whole shards.

    Raises:
        RunFolderError: if another process labels into it, or if its shards were labelled otherwise.
    """
    fs, folder = file_system(output)
    if "file" not in fs.protocol:
        return None
    settings = asdict(labeller.options) | {"format": format, "caption_column": caption_column}
    kind, remedy = "labelling", "--overwrite replaces it; or choose another --output."
    if pairs_per_part is None:
        del settings["batch_size"]  # it changes nothing
    else:  # it decides which pairs make a part
        kind, settings["pairs_per_part"] = "labelling on a Ray cluster", pairs_per_part
        if overwrite and (whole := glob.glob(f"*{STATS_ENDING}", root_dir=folder)):
            # the shards themselves have names that anything may have: nothing to be deleted
            raise RunFolderError(f"{folder} holds whole labelled shards ({whole[0]}): choose another --output.")
    manifest = Manifest(kind, settings, fingerprints(labeller.engine), environment())
    return claim(folder, manifest, MADE, resume=True, overwrite=overwrite, remedy=remedy)[0]


def summary(counts: Counter, output: str, format: str) -> str:
    """What a labelling ends with: the number of pairs with each outcome, and the recipe's entry that reads `output`."""
    totals = ", ".join(f"{name} {number:,}" for name, number in sorted(counts.items()))
    return f"{totals}\n{json.dumps(reader_spec(output, format))}"


def label_shards(
    labeller: CaptionLabeller,
    shards: Sequence[str],
    output: str,
    format: str | None = None,
    rank: int = 0,
    world_size: int = 1,
    caption_column: str | None = None,
) -> Counter:
    """Label this process's share of the shards: shard i is that of process i modulo `world_size`.

    For every shard a file of labelled pairs and one of counts, `NAME.stats.json`, are written to the folder `output`,
    each atomically, the counts last: a shard with counts is finished, and a later run skips it.

    Args:
        shards: see `data.shards.list_shards`.
        output: a folder, local or `hf://`.
        format: `parquet` or `tar`; default that of each shard.

    Returns:
        the counts of this process's shards, those of earlier runs included, and as `broken_shard` the number of those
        that could not be read (a warning names each).

    Raises:
        ValueError: for an unknown format, or a shard without images or captions; for an input that the output would
            replace, or that is another than the one that was labelled under its name.
    """
    if format is not None and format not in FORMATS.values():
        raise ValueError(f"format={format!r} is unknown: choose one of {', '.join(FORMATS.values())}.")
    endings = {name: ending for ending, name in FORMATS.items()}
    fs, folder = file_system(output)
    total: Counter = Counter()
    own = list(shards)[rank::world_size]
    with tqdm(unit="pair", desc="label", position=rank, disable=not own) as progress:
        for number, shard in enumerate(own, start=1):
            name = shard_name(shard)
            progress.set_postfix_str(f"shard {number} of {len(own)}: {name}")
            stats = f"{folder}/{name}{STATS_ENDING}"
            target = f"{output}/{name}{endings[format or shard_format(shard)]}"
            if os.path.realpath(target) == os.path.realpath(shard):
                raise ValueError(f"{shard} is an input, and its result would replace it: name another output folder.")
            identity = file_digest(shard) if os.path.isfile(shard) else None
            if fs.exists(stats):
                counts, before = _read_stats(fs, stats)
                if identity and before not in (None, identity):
                    raise ValueError(
                        f"{shard} has changed since it was labelled: delete {stats} to label it again, or name another "
                        "output folder."
                    )
                total.update(counts)
                continue
            try:
                counts = label_shard(labeller, shard, target, caption_column, progress)
            except UnreadableShard as error:
                # without counts it is not finished: a later run tries again
                logger.warning(str(error))
                total["broken_shard"] += 1
                continue
            content = counts | {INPUT: identity} if identity else counts
            write_bytes(f"{output}/{name}{STATS_ENDING}", json.dumps(content, indent=1).encode())
            total.update(counts)
    return total
