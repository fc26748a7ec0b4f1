# Copyright 2026 The glip_hf authors. MIT licence.
"""Labelling and detection on a Ray cluster: classes for `ray.data.Dataset.map_batches`, one model per actor.

    rows = ray.data.read_parquet("s3://bucket/photos")  # with a column `image`
    pool = {"batch_format": "pyarrow", "compute": ray.data.ActorPoolStrategy(size=8), "num_gpus": 1}
    found = rows.map_batches(DetectObjects, fn_constructor_args=["user/glip-t", ["cat", "dog"]], **pool)
    found.write_parquet("s3://bucket/detections")

Every row that goes in comes out once; one that fails has the reason in its column `error`. The result of a row does not
depend on the rows beside it, so neither order nor number of actors changes it; what a lost actor had in hand Ray does
again. Actors with a GPU (`num_gpus=1`) use it, others as many threads as their `num_cpus`, which also read images.

Cells of images are encoded bytes, `{"bytes", "path"}` as `datasets` stores them, or pixels as `ray.data.read_images`
gives them. Files are read by Ray (`read_images`, `read_binary_files`), so a path is an error.
"""

import hashlib
import os
import platform
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ._extras import require
from .cli.common import CliError, load_model, model_name
from .data.shards import (
    Pair,
    UnreadableShard,
    file_system,
    read_pairs,
    shard_format,
    shard_name,
    write_bytes,
    write_grounded,
)
from .evaluation.run import fingerprints
from .inference import GroundingEngine, GroundingOptions, Request
from .runs import MANIFEST
from .training.self_training import REPORT, CaptionLabeller, LabelOptions, split_parts, unique_id
from .values_glip import shown

data, pa = require("ray.data", "ray"), require("pyarrow", "ray")

SHARED = "on a disk that all machines of the cluster share"
PAIR = pa.struct({"key": pa.string(), "image": pa.large_binary(), "caption": pa.string()})
# A row of `read_parts`; `error` instead of pairs for a shard that cannot be read (further)
PART = pa.schema(
    {"shard": pa.string(), "part": pa.int32(), "digest": pa.string(), "pairs": pa.list_(PAIR), "error": pa.string()}
)
OBJECTS = pa.list_(
    pa.struct(
        {
            "bbox": pa.list_(pa.float32()),
            "tokens_positive": pa.list_(pa.list_(pa.int32())),
            "score": pa.float32(),
        }
    )
)
LABELS = {"width": pa.int32(), "height": pa.int32(), "objects": OBJECTS, "outcome": pa.string(), "error": pa.string()}
REPORTED = {"image_id": pa.string(), "shard": pa.string(), "outcome": pa.string(), "boxes": pa.int32()}
REPORTED |= {"error": pa.string()}
DETECTIONS = {
    "width": pa.int32(),
    "height": pa.int32(),
    "scores": pa.list_(pa.float32()),
    "boxes": pa.list_(pa.list_(pa.float32())),
    "labels": pa.list_(pa.int64()),
    "text_labels": pa.list_(pa.string()),
    "error": pa.string(),
}


class _Actor:
    """A model on the device that Ray gave this process; a ValueError names the machine that cannot load it."""

    def __init__(self, model: str, dtype: str, options: Any, kind: type) -> None:
        if not isinstance(model, str):
            raise TypeError(f"model={shown(model)} must be a directory or Hub id.")
        if not isinstance(options, kind | None):
            raise TypeError(f"options={shown(options)} must be glip_hf's {kind.__name__}(...).")
        context = require("ray").get_runtime_context()
        gpus = context.get_accelerator_ids().get("GPU")
        self.cpus = int(context.get_assigned_resources().get("CPU", 1))
        try:
            self.model, self.processor = load_model(model_name(model), "cuda" if gpus else "cpu", dtype)
        except (CliError, ImportError, OSError, ValueError) as error:
            raise ValueError(
                f"the worker on {platform.node()} has no model: {str(error).rstrip('.')}. Name one of the Hub, or one "
                f"{SHARED}."
            ) from error

    def _use_cpus(self, engine: GroundingEngine) -> None:
        """A reading thread per CPU of the actor: decoding is what a GPU waits for."""
        engine.options.workers = max(engine.options.workers, self.cpus)


class LabelCaptions(_Actor):
    """Labels images with captions: adds the columns `LABELS`, in place of those of the same names.

    `objects` has the boxes of the caption's phrases (see `data.shards.GroundedPair`), `outcome` one of `OUTCOMES`. Each
    row goes through the model by itself; `LabelParts` labels several images at a time.

    Args:
        teacher: directory or Hub id of a model.
        options: but for `batch_size`.
        image, caption: columns; `caption` may hold null.
        dtype: of the model: float32, float16 or bfloat16.
    """

    def __init__(
        self,
        teacher: str,
        options: LabelOptions | None = None,
        image: str = "image",
        caption: str = "caption",
        dtype: str = "float32",
    ) -> None:
        super().__init__(teacher, dtype, options, LabelOptions)
        options = replace(options or LabelOptions(), batch_size=1)
        self.labeller, self.columns = CaptionLabeller(self.model, self.processor, options), (image, caption)

    def __call__(self, rows: Any) -> Any:
        """The rows, a `pyarrow.Table`, with `LABELS`."""
        images, captions = _images(rows, self.columns[0]), _column(rows, self.columns[1])
        if wrong := [cell for cell in captions if not isinstance(cell, str | None)]:
            raise ValueError(
                f"column {self.columns[1]!r} holds {shown(wrong[0])}, a caption is text: name another column."
            )
        pairs = [Pair(str(number), image, caption) for number, (image, caption) in enumerate(zip(images, captions))]
        added: dict[str, list[Any]] = {name: [] for name in LABELS}
        for outcome, grounded, remark in self.labeller.label(pairs):
            made = (grounded.width, grounded.height, grounded.objects) if grounded else (None, None, [])
            for name, value in zip(LABELS, (*made, outcome, remark.partition(": ")[2] or None)):
                added[name].append(value)
        return _with_columns(rows, added, LABELS)


class DetectObjects(_Actor):
    """Detects what a text names in images: adds the columns `DETECTIONS`, in place of those of the same names.

    `boxes` are xyxy in pixels of the upright image, best first; `labels` are positions in the list of class names,
    or of the phrases of a caption.

    Args:
        model: directory or Hub id.
        text: class names, or a caption; None with `text_column`.
        options: see `GroundingOptions`; without `allow_padding`, which would let a result depend on other rows.
        image: column of images.
        text_column: column of a caption, or of a list of class names, for each row.
        dtype: as for `LabelCaptions`.
    """

    def __init__(
        self,
        model: str,
        text: str | Sequence[str] | None = None,
        options: GroundingOptions | None = None,
        image: str = "image",
        text_column: str | None = None,
        dtype: str = "float32",
    ) -> None:
        if (text is not None and len(text) > 0) == (text_column is not None):
            raise ValueError(
                f"text={shown(text)}, text_column={shown(text_column)}: exactly one of them says what to find."
            )
        if getattr(options, "allow_padding", False):
            raise ValueError("allow_padding=True lets a result depend on other rows: leave it out.")
        super().__init__(model, dtype, options, GroundingOptions)
        self.engine = GroundingEngine(self.model, self.processor, options)
        self._use_cpus(self.engine)
        self.text, self.image, self.text_column = text, image, text_column

    def __call__(self, rows: Any) -> Any:
        images = _images(rows, self.image)
        texts = [self.text] * len(images) if self.text_column is None else _column(rows, self.text_column)
        added: dict[str, list[Any]] = {name: [None] * len(images) for name in DETECTIONS}
        if self.text_column is not None:
            added["error"] = [self._fault(text) for text in texts]
        asked = [row for row, fault in enumerate(added["error"]) if fault is None]
        requests = (Request(b"" if images[row] is None else images[row], texts[row]) for row in asked)
        for result in self.engine.ground(requests, skip_broken=True):
            row = asked[result.index]
            if result.error is not None:
                added["error"][row] = str(result.error)
                continue
            (found,) = result.detections
            made = {"width": result.width, "height": result.height, "text_labels": found["text_labels"]}
            made |= {name: found[name].tolist() for name in ("scores", "boxes", "labels")}
            for name, value in made.items():
                added[name][row] = value
        return _with_columns(rows, added, DETECTIONS)

    def _fault(self, text: Any) -> str | None:
        """Why the text of a row cannot be asked for; None if it can."""
        if not text:
            return f"no text in the column {self.text_column}"
        try:
            self.engine.tokenize(text)
        except (TypeError, ValueError) as error:
            return str(error)
        return None


def _column(rows: Any, name: str) -> list[Any]:
    """The cells of a column; a ValueError if there is none."""
    if not isinstance(rows, pa.Table):
        raise ValueError(f"rows came as {type(rows).__name__}: give map_batches batch_format='pyarrow'.")
    if name not in rows.column_names:
        raise ValueError(f"there is no column {name!r}, but {', '.join(rows.column_names)}: name another.")
    return rows.column(name).to_pylist()


def _images(rows: Any, name: str) -> list[Any]:
    """The cells of a column of images: bytes, or pixels."""
    return [cell.get("bytes") if isinstance(cell, Mapping) else cell for cell in _column(rows, name)]


def _with_columns(rows: Any, columns: Mapping[str, list[Any]], types: Mapping[str, Any]) -> Any:
    """The rows with these columns, in place of those of the same names."""
    rows = rows.drop_columns([name for name in columns if name in rows.column_names])
    for name, values in columns.items():
        rows = rows.append_column(name, pa.array(values, types[name]))
    return rows


# -- whole shards ----------------------------------------------------------------------------------


def read_parts(
    shards: Sequence[str],
    batch_size: int,
    pairs_per_part: int = 128,
    caption_column: str | None = None,
    finished: Mapping[str, str] | None = None,
    readers: int = 4,
) -> Any:
    """A Ray data set of the parts of shards (see `self_training.split_parts`), one a row, for `LabelParts`.

    Args:
        shards: see `data.shards.list_shards`; files that every machine of the cluster can read.
        batch_size: of the labeller.
        caption_column: see `data.shards.read_pairs`.
        finished: parts to leave out, from `finished_parts`.
        readers: shards that are read at a time. Reading claims no CPU of Ray's, of which actors may hold all.
    """
    options = {"batch_size": batch_size, "pairs_per_part": pairs_per_part, "caption_column": caption_column}
    items = data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    options["finished"] = dict(finished or {})
    pool = {"compute": data.TaskPoolStrategy(readers), "num_cpus": 0}
    return items.map_batches(_read_parts, fn_kwargs=options, batch_size=1, batch_format="pyarrow", **pool)


def _read_parts(
    rows: Any, batch_size: int, pairs_per_part: int, caption_column: str | None, finished: Mapping[str, str]
) -> Iterator[Any]:
    for shard in rows.column("shard").to_pylist():
        if "://" not in shard and not os.path.exists(shard):
            raise ValueError(
                f"the worker on {platform.node()} does not see {shard}: inputs lie {SHARED}, or in a bucket."
            )
        try:
            for number, part in enumerate(split_parts(read_pairs(shard, caption_column), batch_size, pairs_per_part)):
                name, pairs = part_name(shard, number), [vars(pair) for pair in part]
                identity = _digest(pairs)
                if finished.get(name, identity) != identity:
                    raise ValueError(f"{shard} has changed since {name} was labelled: choose another output folder.")
                if name not in finished:
                    row = {"shard": shard, "part": number, "digest": identity, "pairs": pairs}
                    yield pa.Table.from_pylist([row], PART)
        except UnreadableShard as error:
            yield pa.Table.from_pylist([{"shard": shard, "pairs": [], "error": str(error)}], PART)


def part_name(shard: str, number: int) -> str:
    """What the files of a part are called."""
    return f"{shard_name(shard)}.part-{number:05d}"


def _digest(pairs: Iterable[Mapping[str, Any]]) -> str:
    """Of the content of pairs, long enough to tell a changed shard."""
    found = hashlib.sha256()
    for value in (value for pair in pairs for value in pair.values()):
        content = value.encode(errors="surrogatepass") if isinstance(value, str) else value
        found.update(b"-" if content is None else b"%d:" % len(content) + content)
    return found.hexdigest()[:16]


def finished_parts(output: str) -> dict[str, str]:
    """The parts that have been labelled into a folder, and the digest of each one's pairs."""
    fs, folder = file_system(output)
    paths = fs.glob(f"{folder}/{REPORT}/*.part-*.parquet")
    return dict(path.rpartition("/")[2].removesuffix(".parquet").rsplit(".", 1) for path in paths)


def count_outcomes(output: str) -> Counter:
    """The number of pairs with each outcome, and of boxes, in all reports of a folder."""
    fs, folder = file_system(output)
    total: Counter = Counter()
    if finished_parts(output):
        reports = require("pyarrow.dataset").dataset(f"{folder}/{REPORT}", filesystem=fs, format="parquet")
        for batch in reports.to_batches(columns=["outcome", "boxes"]):
            total.update(batch.column("outcome").to_pylist())
            total["boxes"] += sum(batch.column("boxes").to_pylist())
    return +total


class LabelParts(_Actor):
    """Labels the parts of shards and writes them, as `self_training.label_shards` labels whole ones.

    Of a part, `NAME.part-00000.parquet` (or `.tar`) gets the pairs with boxes, and then a file in `report/` what became
    of all its pairs (`REPORTED`), which is also what it returns. Both are written atomically, under names that follow
    from the part: whoever labels it again, because an actor was lost, writes the same files.

    Args:
        teacher: directory or Hub id of a model.
        output: a folder on a disk that all machines share, or in a bucket or on the Hub.
        options: see `LabelOptions`; those of `read_parts` must have the same `batch_size`.
        format: `parquet` or `tar`; default that of each shard.
        dtype: as for `LabelCaptions`.
        expected: what the teacher must be, from `evaluation.run.fingerprints`.

    Raises:
        ValueError: naming the machine, if it has no teacher or another one, or not the output folder.
    """

    def __init__(
        self,
        teacher: str,
        output: str,
        options: LabelOptions | None = None,
        format: str | None = None,
        dtype: str = "float32",
        expected: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(teacher, dtype, options, LabelOptions)
        self.labeller = CaptionLabeller(self.model, self.processor, options)
        self._use_cpus(self.labeller.engine)
        self.output, self.format = output, format
        own, node = fingerprints(self.labeller.engine) if expected else {}, platform.node()
        if other := [name for name in own if own[name] != expected[name]]:
            raise ValueError(f"the worker on {node} has another teacher ({', '.join(other)}) under the name {teacher}.")
        if expected and "://" not in output and not os.path.exists(f"{output}/{MANIFEST}"):
            raise ValueError(
                f"the worker on {node} does not see the folder {output}: the output lies {SHARED}, or in a bucket."
            )

    def __call__(self, rows: Any) -> Any:
        """Label parts, given as a `pyarrow.Table` of `read_parts`."""
        reports = [self._label(part) for part in rows.to_pylist()]
        return pa.concat_tables(reports)

    def _label(self, row: Mapping[str, Any]) -> Any:
        shard, report, kept = row["shard"], [], []
        if row["error"]:
            outcome = {"shard": shard, "outcome": "broken_shard", "boxes": 0, "error": row["error"]}
            return pa.Table.from_pylist([outcome], pa.schema(REPORTED))
        pairs = [Pair(**pair) for pair in row["pairs"]]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="the caption has more than")  # as `label_shard`
            for pair, (outcome, grounded, remark) in zip(pairs, self.labeller.label(pairs), strict=True):
                identity = unique_id(shard, pair.key)
                error = remark.removeprefix(f"{pair.key}: ") or None
                entry = {"image_id": identity, "shard": shard, "outcome": outcome, "error": error}
                report.append(entry | {"boxes": len(grounded.objects) if grounded else 0})
                if grounded is not None:
                    pair.key = identity
                    kept.append(grounded)
        name, table = part_name(shard, row["part"]), pa.Table.from_pylist(report, pa.schema(REPORTED))
        if kept:
            write_grounded(f"{self.output}/{name}.{self.format or shard_format(shard)}", kept)
        content = pa.BufferOutputStream()
        require("pyarrow.parquet").write_table(table, content)
        write_bytes(f"{self.output}/{REPORT}/{name}.{row['digest']}.parquet", content.getvalue().to_pybytes())
        return table


def reason(error: BaseException) -> str:
    """What failed in a worker, in one line: the end of its traceback."""
    text = str(error)
    if "UserCodeException: " in text:  # Ray adds one of its own, which ends with advice
        text = text.rpartition("\n\nThe above exception was the direct cause")[0] or text
    lines = [line for line in text.splitlines() if line.strip()] or [type(error).__name__]
    return re.sub(r"^[\w.]+(Error|Exception): ", "", lines[-1].strip())
