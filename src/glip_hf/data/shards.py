# Copyright 2026 The glip_hf authors. MIT licence.
"""Shards of captioned images, local or on the Hub: read pair by pair, written atomically.

A shard is a Parquet file or a WebDataset tar. Paths may be local or anything `fsspec` knows; `hf://` comes with
`huggingface_hub`.

* Parquet: a column of images, `image`, `jpg`, `png` or `webp`, holds bytes, or `{"bytes", "path"}` as `datasets`
  stores them; captions are in `caption`, `text` or `txt`, ids in `image_id`, `key` or `__key__` (default: the row;
  the row too where an id occurred before, as that of an image with several captions).
* tar: members `KEY.jpg`, `.jpeg`, `.png` or `.webp` are images; captions are in `KEY.txt`, `KEY.caption.txt`, or
  under `caption` or `text` in `KEY.json`.

Written shards add `objects`: a column, or members `KEY.objects.json`. They are written for `datasets` to read; but the
shards of others are read here, as its WebDataset reader refuses a tar where one sample has no caption or another image
format than the first, and its readers do not tell a damaged shard from a damaged image.
"""

import glob
import gzip
import io
import itertools
import json
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from .._extras import require
from .._writing import replacing
from ..fetching_glip import setting
from ..values_glip import quote

FORMATS = {".parquet": "parquet", ".tar": "tar"}
IMAGES = ("jpg", "jpeg", "png", "webp")
IMAGE_COLUMNS = ("image", *IMAGES)
MEMBERS = (*IMAGES, "txt", "caption.txt", "json")
CAPTION_COLUMNS = ("caption", "text", "txt")
ID_COLUMNS = ("image_id", "key", "__key__")
ROWS_PER_READ = 64
MAX_RATIO = 100
"""How much larger than its file a compressed tar file may be; images hardly compress, captions ten times."""


class UnreadableShard(ValueError):
    """A shard that is damaged as a whole; the message names it."""


@dataclass
class Pair:
    """An image and its caption.

    Attributes:
        key: unique in its shard.
        image: the encoded image. caption: the text. None where they are missing.
    """

    key: str
    image: bytes | None = field(repr=False)
    caption: str | None


@dataclass
class GroundedPair:
    """A pair with boxes.

    Attributes:
        width, height: pixels of the upright image.
        objects: each with `bbox` [x, y, width, height] in pixels, `tokens_positive` [[begin, end], ...] in characters
            of the caption, and `score`.
    """

    pair: Pair
    width: int
    height: int
    objects: list[dict[str, Any]]


def file_system(path: str) -> tuple[Any, str]:
    """The `fsspec` file system of a path, and the path in it."""
    return require("fsspec.core").url_to_fs(path)


def shard_format(path: str) -> str:
    """`parquet` or `tar`, by the path's extension; a ValueError for another."""
    for extension, name in FORMATS.items():
        if path.endswith(extension):
            return name
    raise ValueError(f"{path} is not a shard: it must end in {' or '.join(FORMATS)}.")


def list_shards(patterns: Sequence[str]) -> list[str]:
    """The shards that match paths and glob patterns, sorted, each once.

    Raises:
        FileNotFoundError: for a pattern without a match.
        ValueError: for files that are not shards, or two of one name, whose results would get the same name.
    """
    found: set[str] = set()
    for pattern in patterns:
        if "://" in pattern:
            fs, path = file_system(pattern)
            scheme = pattern.partition("://")[0]
            matches = fs.glob(path)
            if scheme != "file":
                matches = [f"{scheme}://{match.removeprefix('/')}" for match in matches]
        else:
            matches = glob.glob(pattern, recursive=True)
        if not matches:
            raise FileNotFoundError(f"no shard matches {pattern!r}.")
        found.update(matches)
    names: dict[str, str] = {}
    for shard in sorted(found):
        shard_format(shard)
        if (other := names.setdefault(shard_name(shard), shard)) != shard:
            raise ValueError(f"{other} and {shard} have the same name: give them different ones.")
    return list(names.values())


def shard_name(path: str) -> str:
    """The shard's file name without its extension."""
    return PurePosixPath(path.replace("\\", "/")).stem


# -- reading ---------------------------------------------------------------------------------------


def read_pairs(path: str, caption_column: str | None = None) -> Iterator[Pair]:
    """The pairs of a shard in their order.

    Args:
        caption_column: column (Parquet) or key of the JSON member (tar) that holds the caption, if not a usual one.

    Raises:
        UnreadableShard: for a shard that is damaged as a whole.
        ValueError: for one without a column of images or captions.
    """
    fs, inner = file_system(path)
    with fs.open(inner, "rb") as file:
        if shard_format(path) == "parquet":
            yield from _read_parquet(file, path, caption_column)
        else:
            yield from _read_tar(_decompressed(file, fs.size(inner), path), path, caption_column)


def _column(names: Sequence[str], candidates: Sequence[str], what: str, path: str) -> str:
    for candidate in candidates:
        if candidate in names:
            return candidate
    raise ValueError(f"{path} has no {what}: one of {', '.join(candidates)} is needed, there are {', '.join(names)}.")


def _read_parquet(file: Any, path: str, caption_column: str | None) -> Iterator[Pair]:
    parquet = require("pyarrow.parquet")
    try:
        table = parquet.ParquetFile(file)
    except Exception as error:  # pyarrow has errors of its own for every kind of damage
        raise UnreadableShard(f"{path} cannot be read as Parquet: {error}") from error
    names = table.schema_arrow.names
    image = _column(names, IMAGE_COLUMNS, "column of images", path)
    caption = _column(names, (caption_column,) if caption_column else CAPTION_COLUMNS, "column of captions", path)
    key = next((name for name in ID_COLUMNS if name in names), None)
    number, known = 0, set()
    batches = table.iter_batches(ROWS_PER_READ, columns=[name for name in (image, caption, key) if name])
    while True:
        try:
            batch = next(batches, None)
        except Exception as error:
            raise UnreadableShard(f"{path} breaks off after row {number}: {error}") from error
        if batch is None:
            return
        for row in batch.to_pylist():
            value = row[image]
            value = value.get("bytes") if isinstance(value, Mapping) else value
            if not isinstance(value, bytes | None):  # a place, of which nothing is read
                raise ValueError(
                    f"{path}: row {number}: column {image!r} holds {quote(value)}, an image is its encoded bytes: "
                    "store the images in the shard."
                )
            if not isinstance(row[caption], str | None):
                raise ValueError(
                    f"{path}: row {number}: column {caption!r} holds {row[caption]!r:.60}, a caption is text: name "
                    "another column, or make a row of each caption."
                )
            name = f"{number:08d}" if key is None or row[key] is None else str(row[key])
            name = f"{name}-{number:08d}" if name in known else name
            known.add(name)
            yield Pair(name, value, row[caption])
            number += 1


def _key_and_extension(member: tarfile.TarInfo) -> tuple[str, str]:
    folder, slash, name = member.name.rpartition("/")
    stem, _, extension = name.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


class _Bounded(gzip.GzipFile):
    """Decompresses up to `limit` bytes."""

    limit = 0

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        if self.tell() > self.limit:
            raise tarfile.ReadError(f"it holds more than {MAX_RATIO} times its own size: decompress it first")
        return content


def _decompressed(file: Any, size: int, path: str) -> Any:
    """The tar file in a file that gzip may have compressed, within limits; an UnreadableShard for other compression."""
    start = file.read(6)
    file.seek(0)
    if start.startswith((b"BZh", b"\xfd7zXZ")):
        raise UnreadableShard(f"{path} is compressed by bzip2 or xz: decompress it first.")
    if not start.startswith(b"\x1f\x8b"):
        return file
    bounded = _Bounded(fileobj=file)
    bounded.limit = MAX_RATIO * max(size, 1 << 20)
    return bounded


def _read_tar(file: Any, path: str, caption_column: str | None) -> Iterator[Pair]:
    limit = setting("GLIP_MEMBER_MAX_MB", 100)
    try:
        with tarfile.open(fileobj=file, mode="r|") as tar:
            members = (member for member in tar if member.isfile())
            for key, group in itertools.groupby(members, lambda member: _key_and_extension(member)[0]):
                parts = {}
                for member in group:
                    if (extension := _key_and_extension(member)[1]) not in MEMBERS:
                        continue
                    if member.size > limit * 1e6:  # a sparse one may claim any size
                        raise tarfile.ReadError(
                            f"{quote(member.name)} has {member.size / 1e6:,.0f} MB, more than {limit:g}; the "
                            "environment variable GLIP_MEMBER_MAX_MB allows more"
                        )
                    parts[extension] = tar.extractfile(member).read()
                yield _pair(key, parts, caption_column)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UnreadableShard(f"{path} cannot be read as a tar file: {error}") from error


def _pair(key: str, parts: Mapping[str, bytes], caption_column: str | None) -> Pair:
    image = next((parts[extension] for extension in IMAGES if extension in parts), None)
    text = parts.get("txt", parts.get("caption.txt"))
    if text is not None and not caption_column:
        return Pair(key, image, text.decode("utf-8", errors="replace").strip())
    try:
        values = json.loads(parts.get("json", b"{}"))
    except ValueError:
        values = {}
    values = values if isinstance(values, Mapping) else {}
    captions = (values.get(name) for name in ([caption_column] if caption_column else CAPTION_COLUMNS))
    return Pair(key, image, next((caption for caption in captions if isinstance(caption, str)), None))


# -- writing ---------------------------------------------------------------------------------------


def write_bytes(path: str, content: bytes) -> None:
    """Write a file atomically: a reader sees the old one, none, or all of the new one."""
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "content"
        local.write_bytes(content)
        put_file(local, path)


def put_file(local: Path, path: str) -> None:
    """Copy a local file to `path` atomically."""
    fs, inner = file_system(path)
    if "file" in (fs.protocol if isinstance(fs.protocol, tuple | list) else (fs.protocol,)):
        with replacing(inner) as new:
            shutil.copyfile(local, new)
    else:
        # An upload is one commit on the Hub and one object in a bucket: atomic.
        fs.put_file(str(local), inner)


def write_grounded(path: str, pairs: Sequence[GroundedPair]) -> None:
    """Write a shard that `sources.read_hub` reads (see `reader_spec`), in the format of its extension."""
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "shard"
        (_write_parquet if shard_format(path) == "parquet" else _write_tar)(local, pairs)
        put_file(local, path)


def _write_parquet(local: Path, pairs: Sequence[GroundedPair]) -> None:
    datasets, pa = require("datasets"), require("pyarrow")
    value = datasets.Value
    objects = {
        "bbox": datasets.List(value("float32")),
        "tokens_positive": datasets.List(datasets.List(value("int32"))),
        "score": value("float32"),
    }
    columns = {
        "image_id": (value("string"), [grounded.pair.key for grounded in pairs]),
        "image": (datasets.Image(), [{"bytes": grounded.pair.image, "path": None} for grounded in pairs]),
        "width": (value("int32"), [grounded.width for grounded in pairs]),
        "height": (value("int32"), [grounded.height for grounded in pairs]),
        "caption": (value("string"), [grounded.pair.caption for grounded in pairs]),
        "objects": (datasets.List(objects), [grounded.objects for grounded in pairs]),
    }
    features = datasets.Features({name: feature for name, (feature, _) in columns.items()})
    table = pa.table({name: values for name, (_, values) in columns.items()}, schema=features.arrow_schema)
    # Small row groups: reading one image need not fetch a whole shard.
    require("pyarrow.parquet").write_table(table, local, row_group_size=ROWS_PER_READ)


def _write_tar(local: Path, pairs: Sequence[GroundedPair]) -> None:
    with tarfile.open(local, "w") as tar:
        for grounded in pairs:
            pair = grounded.pair
            key = pair.key.replace(".", "%2E")  # a key ends at the first dot
            objects = json.dumps(grounded.objects, ensure_ascii=False)
            # All images under one extension, which makes one column; decoders look at the content.
            members = {"jpg": pair.image, "caption.txt": pair.caption.encode(), "objects.json": objects.encode()}
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def reader_spec(folder: str, format: str) -> dict[str, Any]:
    """The entry of a recipe's `data.sources` (see `sources.build_source`) that reads the shards written to a folder."""
    spec = {"format": "hub", "name": shard_name(folder.rstrip("/")) or "labelled"}
    if format == "parquet":
        return {**spec, "dataset": "parquet", "data_files": f"{folder}/*.parquet"}
    columns = {"image": "jpg", "caption": "caption.txt", "objects": "objects.json", "image_id": "__key__"}
    return {**spec, "dataset": "webdataset", "data_files": f"{folder}/*.tar", "columns": columns}
