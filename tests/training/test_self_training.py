"""A teacher labels shards of captioned pictures; what it writes is what pre-training reads."""

import bz2
import gzip
import importlib.util
import io
import json
import lzma
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from random_glip import load_photo, random_model, random_processor, save_random_model
from safetensors.torch import load_file, save_file

from glip_hf.data.shards import (
    GroundedPair,
    Pair,
    UnreadableShard,
    list_shards,
    read_pairs,
    reader_spec,
    write_grounded,
)
from glip_hf.data.sources import build_source
from glip_hf.inference import Request, View
from glip_hf.runs import RunFolderError
from glip_hf.training.self_training import (
    CaptionLabeller,
    LabelOptions,
    claim_labels,
    label_shards,
    merge_boxes,
    split_parts,
)

CAPTION = "two cats on a pink sofa"
SPANS = [(0, 8), (12, 23)]
EXAMPLE = Path(__file__).parents[2] / "examples" / "label_captions.py"


def png(size: tuple[int, int] = (128, 96)) -> bytes:
    stream = io.BytesIO()
    load_photo().resize(size).save(stream, "PNG")
    return stream.getvalue()


ROWS = [
    {"image": png(), "caption": CAPTION},
    {"image": b"no picture", "caption": CAPTION},
    {"image": png(), "caption": None},
    {"image": png(), "caption": "it is running"},
    {"image": png((96, 128)), "caption": "a cat"},
]


def write_parquet(path: Path, rows: list[dict] = ROWS) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_tar(path: Path, rows: list[dict] = ROWS) -> Path:
    with tarfile.open(path, "w") as tar:
        for number, row in enumerate(rows):
            parts = {"png": row["image"]}
            if row["caption"] is not None:
                parts |= {"txt": row["caption"].encode()}
            for ending, content in parts.items():
                info = tarfile.TarInfo(f"part/{number:03d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def labeller() -> CaptionLabeller:
    processor = random_processor()
    processor.image_processor.size = {"shortest_edge": 96, "longest_edge": 160}
    return CaptionLabeller(random_model(), processor, LabelOptions(threshold=0.05, batch_size=2))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIP_DATA_CACHE", str(tmp_path / "cache"))


# -- shards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("write, name", [(write_parquet, "a.parquet"), (write_tar, "a.tar")])
def test_reading(write, name: str, tmp_path: Path) -> None:
    pairs = list(read_pairs(str(write(tmp_path / name))))
    assert [pair.caption for pair in pairs] == [row["caption"] for row in ROWS]
    assert [pair.image for pair in pairs] == [row["image"] for row in ROWS]
    assert len({pair.key for pair in pairs}) == len(ROWS)


def test_reading_what_datasets_writes(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": b"x", "path": None}, "text": "a cat", "image_id": 7}]
    (pair,) = read_pairs(str(write_parquet(tmp_path / "a.parquet", rows)))
    assert (pair.key, pair.image, pair.caption) == ("7", b"x", "a cat")
    (pair,) = read_pairs(str(tmp_path / "a.parquet"), "text")
    assert pair.caption == "a cat"
    ids = ["7", "7", None, None, "8"]  # an image with two captions, and rows without an id
    write_parquet(tmp_path / "b.parquet", [rows[0] | {"image_id": own} for own in ids])
    keys = [pair.key for pair in read_pairs(str(tmp_path / "b.parquet"))]
    assert keys == ["7", "7-00000001", "00000002", "00000003", "8"]
    with pytest.raises(ValueError, match="no column of captions: one of words is needed, there are image, text"):
        list(read_pairs(str(tmp_path / "a.parquet"), "words"))


def test_listing(tmp_path: Path) -> None:
    for name in ("b.tar", "a.parquet", "c.txt"):
        (tmp_path / name).touch()
    found = list_shards([f"{tmp_path}/*.parquet", f"{tmp_path}/b.tar"])
    assert [Path(path).name for path in found] == ["a.parquet", "b.tar"]
    with pytest.raises(FileNotFoundError, match="nothing"):
        list_shards([f"{tmp_path}/nothing*"])
    with pytest.raises(ValueError, match="c.txt is not a shard"):
        list_shards([f"{tmp_path}/*"])
    (tmp_path / "a.tar").touch()
    with pytest.raises(ValueError, match="same name"):
        list_shards([f"{tmp_path}/*.parquet", f"{tmp_path}/*.tar"])


def test_a_remote_file_system(tmp_path: Path) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem().pipe("/in/a.parquet", write_parquet(tmp_path / "a.parquet").read_bytes())
    (shard,) = list_shards(["memory://in/*.parquet"])
    pairs = list(read_pairs(shard))
    write_grounded("memory://out/a.parquet", [GroundedPair(pairs[0], 128, 96, [])])
    (pair,) = read_pairs("memory://out/a.parquet")
    assert pair.caption == CAPTION


@pytest.mark.parametrize("format", ["parquet", "tar"])
def test_what_is_written_is_what_pre_training_reads(format: str, tmp_path: Path) -> None:
    objects = [
        {"bbox": [10.0, 20.0, 30.0, 40.0], "tokens_positive": [[0, 8]], "score": 0.9},
        {"bbox": [1.0, 2.0, 50.0, 60.0], "tokens_positive": [[0, 8], [12, 23]], "score": 0.5},
    ]
    pairs = [GroundedPair(Pair(f"s-{i}", png(), CAPTION), 128, 96, objects[: i + 1]) for i in range(2)]
    write_grounded(str(tmp_path / f"s.{format}"), pairs)
    source = build_source(reader_spec(str(tmp_path), format), cache_dir=tmp_path / "cache")
    assert len(source) == 2
    record = source[1]
    assert (record.image_id, record.caption, record.width, record.height) == ("s-1", CAPTION, 128, 96)
    assert record.boxes.tolist() == [[10, 20, 39, 59], [1, 2, 50, 61]]
    assert record.spans == [[(0, 8)], [(0, 8), (12, 23)]]
    assert record.image.load().size == (128, 96)


def test_dots_in_ids_do_not_end_the_keys_of_a_tar_file(tmp_path: Path) -> None:
    objects = [{"bbox": [10.0, 20.0, 30.0, 40.0], "tokens_positive": [[0, 8]], "score": 0.9}]
    pairs = [GroundedPair(Pair(f"s.v2-{i}.jpg", png(), CAPTION), 128, 96, objects) for i in range(2)]
    write_grounded(str(tmp_path / "s.v2.tar"), pairs)
    source = build_source(reader_spec(str(tmp_path), "tar"), cache_dir=tmp_path / "cache")
    assert [record.image_id for record in source] == ["s%2Ev2-0%2Ejpg", "s%2Ev2-1%2Ejpg"]


# -- labelling -------------------------------------------------------------------------------------


def test_boxes_that_are_nearly_the_same_join() -> None:
    boxes = torch.tensor([[0.0, 0, 99, 99], [0, 0, 99, 98], [0, 0, 50, 99], [0, 0, 99, 99]])
    groups = merge_boxes(boxes, torch.tensor([1, 0, 0, 1]), 0.95)
    assert groups == [(0, [1, 0]), (2, [0])]
    assert merge_boxes(boxes[:0], torch.zeros(0).long(), 0.95) == []


def test_every_pair_has_an_outcome(labeller: CaptionLabeller) -> None:
    pairs = [Pair(str(i), row["image"], row["caption"]) for i, row in enumerate(ROWS)]
    found = list(labeller.label(pairs))
    outcomes = [outcome for outcome, _, _ in found]
    assert outcomes == ["labelled", "broken_image", "no_caption", "no_phrase", "labelled"]
    assert found[1][2].startswith("1: ")
    grounded = found[0][1]
    assert (grounded.pair.key, grounded.width, grounded.height) == ("0", 128, 96)
    for thing in grounded.objects:
        assert thing["score"] > 0.05 and all(tuple(span) in SPANS for span in thing["tokens_positive"])
        x, y, width, height = thing["bbox"]
        assert x >= 0 and y >= 0 and x + width <= 128.01 and y + height <= 96.01


def test_labels_do_not_depend_on_the_batch(labeller: CaptionLabeller) -> None:
    pairs = [Pair(str(i), ROWS[0]["image"], CAPTION) for i in range(3)]
    options = LabelOptions(threshold=0.05, batch_size=3)
    other = CaptionLabeller(labeller.model, labeller.processor, options)
    for (_, one, _), (_, two, _) in zip(labeller.label(pairs), other.label(pairs)):
        assert len(one.objects) == len(two.objects)
        for a, b in zip(one.objects, two.objects):
            assert a["bbox"] == pytest.approx(b["bbox"], abs=1e-2) and a["tokens_positive"] == b["tokens_positive"]


def test_pixels_are_labelled_like_encoded_bytes(labeller: CaptionLabeller) -> None:
    """`ray.data.read_images` gives arrays."""
    pixels = np.asarray(Image.open(io.BytesIO(ROWS[0]["image"])).convert("RGB"))
    (_, one, _), (_, two, _) = labeller.label([Pair("a", ROWS[0]["image"], CAPTION), Pair("b", pixels, CAPTION)])
    assert len(one.objects) and one.objects == two.objects


def test_parts_have_the_labels_of_the_whole(labeller: CaptionLabeller) -> None:
    """To the last bit, though images of several sizes share forward passes."""
    pairs = [
        Pair(str(i), row["image"] if i % 5 else png((128 - 8 * i, 96)), row["caption"])
        for i, row in enumerate([*ROWS, *ROWS[2:], *ROWS])
    ]
    parts = list(split_parts(pairs, labeller.options.batch_size, size=3))
    assert len(parts) > 2 and [pair for part in parts for pair in part] == pairs
    assert [len(part) for part in split_parts(pairs, 1, size=1)] == [1] * len(pairs)
    assert list(split_parts([], 2, size=3)) == []
    large = [Pair("0", bytes(65 << 20), None), *pairs[:2]]
    assert [len(part) for part in split_parts(large, 2, size=100)] == [1, 2]
    whole = [(outcome, vars(found) if found else None) for outcome, found, _ in labeller.label(pairs)]
    apart = [(outcome, vars(found) if found else None) for part in parts for outcome, found, _ in labeller.label(part)]
    assert apart == whole


def test_whole_shards_and_parts_do_not_share_a_folder(labeller: CaptionLabeller, tmp_path: Path) -> None:
    claim_labels(labeller, str(tmp_path / "a"), None, None).release()
    (tmp_path / "a" / "x.stats.json").touch()
    with pytest.raises(RunFolderError, match="the purpose labelling, this one has labelling on a Ray cluster"):
        claim_labels(labeller, str(tmp_path / "a"), None, None, pairs_per_part=8)
    with pytest.raises(RunFolderError, match=r"holds whole labelled shards \(x.stats.json\): choose another --output"):
        claim_labels(labeller, str(tmp_path / "a"), None, None, overwrite=True, pairs_per_part=8)
    claim_labels(labeller, str(tmp_path / "b"), None, None, pairs_per_part=8).release()
    (tmp_path / "b" / "report").mkdir()
    (tmp_path / "b" / "report" / "x.part-00000.0.parquet").touch()
    with pytest.raises(RunFolderError, match="pairs_per_part=8, this one has 9"):
        claim_labels(labeller, str(tmp_path / "b"), None, None, pairs_per_part=9)
    claim_labels(labeller, str(tmp_path / "b"), None, None, overwrite=True).release()
    assert not list((tmp_path / "b" / "report").iterdir())


def test_a_high_threshold_leaves_nothing_and_says_so(labeller: CaptionLabeller, tmp_path: Path) -> None:
    strict = CaptionLabeller(labeller.model, labeller.processor, LabelOptions(threshold=1.0))
    shard = write_parquet(tmp_path / "a.parquet")
    counts = label_shards(strict, [str(shard)], str(tmp_path / "out"))
    assert counts["no_box"] == 2 and counts["labelled"] == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.stats.json"]
    with pytest.raises(ValueError, match="threshold=1.5"):
        LabelOptions(threshold=1.5)


def test_shards_are_shared_out_finished_ones_skipped(labeller: CaptionLabeller, tmp_path: Path, monkeypatch) -> None:
    shards = [str(write_parquet(tmp_path / f"{name}.parquet", ROWS[:1])) for name in "abc"]
    out = tmp_path / "out"
    assert label_shards(labeller, shards, str(out), rank=1, world_size=2)["labelled"] == 1
    assert {path.name for path in out.iterdir()} == {"b.parquet", "b.stats.json"}
    before = (out / "b.parquet").stat().st_mtime_ns
    # A kill between the shard and its counts: the shard is labelled again.
    write_parquet(out / "c.parquet", ROWS[:1])
    total = label_shards(labeller, shards, str(out))
    assert total["labelled"] == 3
    assert (out / "b.parquet").stat().st_mtime_ns == before
    assert sorted(path.name for path in out.iterdir()) == sorted(
        f"{name}{ending}" for name in "abc" for ending in (".parquet", ".stats.json")
    )
    monkeypatch.setattr(labeller, "label", lambda pairs: pytest.fail("nothing is left to do"))
    assert label_shards(labeller, shards, str(out)) == total


def test_other_inputs_under_the_names_of_labelled_ones(labeller: CaptionLabeller, tmp_path: Path) -> None:
    shard, out = write_parquet(tmp_path / "a.parquet", ROWS[:1]), tmp_path / "out"
    label_shards(labeller, [str(shard)], str(out))
    write_parquet(shard, ROWS[3:])
    with pytest.raises(ValueError, match=r"a\.parquet has changed since it was labelled: delete .*a\.stats\.json"):
        label_shards(labeller, [str(shard)], str(out))
    for text in ("", "[]", '{"labelled": "1"}', '{"code": 1}', "[" * 100_000):
        (out / "a.stats.json").write_text(text)
        with pytest.raises(ValueError, match=r"a\.stats\.json is damaged .* delete it"):
            label_shards(labeller, [str(shard)], str(out))
    content = shard.read_bytes()
    with pytest.raises(ValueError, match="its result would replace it"):
        label_shards(labeller, [str(shard)], str(tmp_path))
    assert shard.read_bytes() == content


def test_a_broken_shard_stops_nobody(labeller: CaptionLabeller, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"not parquet")
    (tmp_path / "b.tar").write_bytes(b"not tar" * 100)
    good = write_tar(tmp_path / "c.tar", ROWS[:1])
    shards = [str(tmp_path / "a.parquet"), str(tmp_path / "b.tar"), str(good)]
    counts = label_shards(labeller, shards, str(tmp_path / "out"))
    assert counts["broken_shard"] == 2 and counts["labelled"] == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"c.tar", "c.stats.json"}


def test_shards_that_break_off(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[4:40] = b"\xff" * 36  # the first page; the footer says all is well
    (tmp_path / "a.parquet").write_bytes(content)
    whole = write_tar(tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: len(whole) // 2])
    for name in ("a.parquet", "b.tar"):
        with pytest.raises(UnreadableShard, match=name):
            list(read_pairs(str(tmp_path / name)))


def tar_of(*members: tuple[str, bytes, int | None]) -> bytes:
    """A tar file of (name, content, size that is claimed, None for its own)."""
    content = b""
    for name, data, size in members:
        info = tarfile.TarInfo(name)
        info.size = len(data) if size is None else size
        content += info.tobuf() + data + bytes(-len(data) % 512)
    return content + bytes(1024)


def test_compressed_shards(tmp_path: Path) -> None:
    """As tools name them by mistake: gzip is read as far as it goes, a bomb and other compression are named."""
    whole = write_tar(tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(gzip.compress(whole))
    assert [pair.caption for pair in read_pairs(str(tmp_path / "a.tar"))] == [row["caption"] for row in ROWS]
    bomb = tar_of(("a.bin", bytes(120_000_000), None))
    for content, message in (
        (gzip.compress(bomb, 1), "more than 100 times its own size"),
        (bz2.compress(whole), "compressed by bzip2 or xz: decompress it first"),
        (lzma.compress(whole), "compressed by bzip2 or xz: decompress it first"),
    ):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(UnreadableShard, match=f"a.tar.*{message}"):
            list(read_pairs(str(tmp_path / "a.tar")))


def test_members_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of(("a.jpg", b"x", 2**40)))
    with pytest.raises(UnreadableShard, match="'a.jpg' has 1,099,512 MB, more than 100; .* GLIP_MEMBER_MAX_MB"):
        list(read_pairs(str(tmp_path / "a.tar")))
    (tmp_path / "a.tar").write_bytes(tar_of(("a.npy", bytes(20_000), None), ("a.jpg", bytes(15_000), None)))
    monkeypatch.setenv("GLIP_MEMBER_MAX_MB", "0.016")
    (pair,) = read_pairs(str(tmp_path / "a.tar"))  # what is not read may have any size
    assert len(pair.image) == 15_000


def test_sixteen_bit_images_are_read_as_everywhere(labeller: CaptionLabeller) -> None:
    ramp, buffer = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64), io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG")
    shown = labeller.engine._show(0, Request(buffer.getvalue(), [CAPTION], spans=[SPANS]), View())
    expected = labeller.processor.image_processor(ramp, return_tensors="pt").pixel_values
    assert torch.equal(shown.pixels["pixel_values"], expected)


def test_an_image_is_its_bytes_and_not_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text in its column was opened as a path, or fetched as a URL."""
    monkeypatch.chdir(tmp_path)  # a path that the message shows whole
    Path("secret.png").write_bytes(ROWS[0]["image"])
    for place in ("secret.png", "http://127.0.0.1/a.png"):
        shard = write_parquet(tmp_path / "a.parquet", [{"image": place, "caption": "a fish"}])
        with pytest.raises(ValueError, match="a.parquet: row 0: column 'image' holds '.*png', an image is its encoded"):
            list(read_pairs(str(shard)))


def test_a_caption_is_text(tmp_path: Path) -> None:
    table = pa.table({"image": [b"x"], "caption": [["a cat", "a dog"]]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="row 0: column 'caption' holds"):
        list(read_pairs(str(tmp_path / "a.parquet")))


def test_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    write_parquet(tmp_path / "in-0.parquet")
    write_tar(tmp_path / "in-1.tar")
    model = save_random_model(tmp_path / "model")
    spec = importlib.util.spec_from_file_location("label_captions_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arguments = ["--teacher", str(model), "--input", f"{tmp_path}/in-*", "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["x", *arguments, "--threshold", "0.05", "--format", "tar"])
    assert module.main() == 0
    counts, spec = capsys.readouterr().out.strip().splitlines()[-2:]
    assert "broken_image 2" in counts and "no_caption 2" in counts and "labelled 4" in counts
    source = build_source(json.loads(spec), cache_dir=tmp_path / "cache")
    assert len(source) == 4 and {record.caption for record in source} == {CAPTION, "a cat"}
    again = ["x", *arguments, "--format", "tar", "--threshold"]
    for options, code in ((["0.05"], 0), (["0.5"], 2), (["0.05", "--caption-column", "caption"], 2)):
        monkeypatch.setattr(sys, "argv", again + options)
        assert module.main() == code
    errors = capsys.readouterr().err
    assert "with threshold=0.05, this one has 0.5: " in errors and "caption_column=None, this one has caption" in errors
    file = tmp_path / "model" / "model.safetensors"
    save_file({name: value * 1.01 for name, value in load_file(file).items()}, file, {"format": "pt"})
    monkeypatch.setattr(sys, "argv", [*again, "0.05"])
    assert module.main() == 2 and "tensors) of another content" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*again, "0.05", "--overwrite"])
    assert module.main() == 0
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["x", *arguments[:3], "nowhere*", *arguments[4:]])
    assert module.main() == 2
    assert "no shard matches" in capsys.readouterr().err
