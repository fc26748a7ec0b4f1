# Copyright 2026 The glip_hf authors. MIT licence.
"""Scenes are what their captions say, the same from the same seed, and keep what they hold out."""

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizer

from glip_hf.data.scenes import (
    COLORS,
    HELD_OUT,
    KINDS,
    NOVEL_KINDS,
    PATTERNS,
    SPLITS,
    SceneConfig,
    SceneDataset,
    contact_sheet,
    make_scene,
    vocabulary,
)
from glip_hf.data.scenes.config import Rng
from glip_hf.data.scenes.layout import fails, holds
from glip_hf.data.scenes.painting import Canvas, Thing, cut_out, second_color
from glip_hf.data.scenes.shapes import SILHOUETTES
from glip_hf.data.scenes.wording import NUMBERS, RELATION_WORDS, plural
from glip_hf.prompts_glip import positive_map

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = ROOT / "src/glip_hf/assets/vocab.txt"
CONFIG = SceneConfig()
SINGULAR = {plural(kind): kind for kind in (*KINDS, *NOVEL_KINDS)}
WORD_RELATION = {words: name for name, all_words in RELATION_WORDS.items() for words in all_words}


@pytest.fixture(scope="module")
def scenes() -> dict[str, list]:
    return {split: list(SceneDataset(split, 60, seed=3)) for split in SPLITS}


def fits(thing: Thing, phrase: str) -> bool:
    """Whether a thing is what the words of a phrase say, its number left aside."""
    words = [w for w in phrase.split() if w not in ("a", "an", "the", *NUMBERS.values())]
    if words[-1] != "thing" and thing.kind != SINGULAR.get(words[-1], words[-1]):
        return False
    return all(word in (thing.color, thing.pattern, thing.band) for word in words[:-1])


def same(a, b) -> bool:
    return (
        np.array_equal(a.image, b.image)
        and np.array_equal(a.boxes, b.boxes)
        and np.array_equal(a.labels, b.labels)
        and a.prompt == b.prompt
    )


# -- streams ---------------------------------------------------------------------------------------


def test_a_scene_depends_on_its_split_seed_and_index_alone() -> None:
    backwards = [make_scene("train", 5, index) for index in reversed(range(6))][::-1]
    for index, (once, again) in enumerate(zip(SceneDataset("train", 6, seed=5), backwards)):
        assert once.index == index and same(once, again)
    assert same(SceneDataset("train", 2, seed=5, start=4)[1], backwards[5])
    for other in (("train", 5, 1), ("train", 6, 0), ("detection", 5, 0)):
        assert not np.array_equal(make_scene(*other).image, backwards[0].image)


def digest(*parts: object) -> str:
    """16 hexadecimal digits of bytes, or of values as JSON."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part if isinstance(part, bytes) else json.dumps(part).encode())
    return hashed.hexdigest()[:16]


@pytest.mark.parametrize(
    ("split", "pixels", "text"),
    [
        ("train", "a17de54a3e44ab73", "a65c152bd621c6df"),
        ("detection", "e8a9b83feddc7de3", "53655293c558210b"),
        ("sentences", "bbad49b8fae4f1b3", "8bb18660a7bdcdb8"),
        ("unseen", "483121ed2666da1a", "b7b4ca06be21116a"),
        ("relations", "962a940d9cdaeb7e", "ae8f55b2f192c00e"),
        ("novel_train", "c20e9580b40a0467", "a9888e37ed6d4915"),
        ("novel", "aecc7883be107048", "f32897a30e8061de"),
    ],
)
def test_scenes_of_a_seed_never_change(split: str, pixels: str, text: str) -> None:
    """Hashes of the scenes that the shipped model was trained and measured on."""
    samples = [make_scene(split, 7, index) for index in (0, 1, 2, 3, 20_000, 20_001)]
    assert digest(*(sample.image.tobytes() for sample in samples)) == pixels
    told = [[s.caption, s.prompt.spans, s.boxes.tolist(), s.labels.tolist(), s.by_relation] for s in samples]
    assert digest(*told) == text


def test_families_follow_the_number_of_the_scene() -> None:
    config = SceneConfig(families=((0, (1, 0, 0)), (3, (0, 0, 1))))
    scenes = SceneDataset("train", 6, seed=5, config=config)
    assert [scene.names is not None for scene in scenes] == [True] * 3 + [False] * 3
    assert [scene.by_relation is not None for scene in scenes] == [False] * 3 + [True] * 3


def test_streams_cannot_meet() -> None:
    assert len(set(SPLITS.values())) == len(SPLITS)
    words = [(split, seed, index) for split in (0, 1) for seed in (0, 1) for index in (0, 1)]
    assert len({Rng(*w)() for w in words}) == len(words)


@pytest.mark.parametrize("arguments", [("test", 0, 0), ("train", -1, 0), ("train", 0, 2**32)])
def test_bad_arguments_are_refused(arguments) -> None:
    with pytest.raises(ValueError, match="unknown|must lie in"):
        make_scene(*arguments)
    with pytest.raises(IndexError):
        SceneDataset("train", 3)[3]


# -- images --------------------------------------------------------------------------------------


def test_there_is_enough_to_tell_apart() -> None:
    assert len(KINDS) >= 16 and len(COLORS) == 10 and len(PATTERNS) == 4
    assert not set(KINDS) & set(NOVEL_KINDS)
    for name, parts in SILHOUETTES.items():
        corners = np.concatenate([points for points, paints in parts if paints])
        assert np.abs(corners).max() == pytest.approx(1, abs=1e-5), name
        assert corners.min(0) == pytest.approx(-corners.max(0), abs=1e-5), name
    looks = {(rgb, tuple(second_color(word, np.array(rgb, float)))) for word, rgb in COLORS.items()}
    assert len(looks) == 10


@pytest.mark.parametrize("resolution", [96, 160, 320])
def test_resolution_scales_the_image_and_the_things(resolution: int) -> None:
    config = SceneConfig(resolution=resolution)
    for index in range(10):
        sample = make_scene("train", 0, index, config)
        assert sample.image.shape == (resolution, resolution, 3)
        assert sample.image.dtype == np.uint8
        assert (sample.boxes >= 0).all() and (sample.boxes <= resolution - 1).all()
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
        for thing in sample.things:
            low, high = getattr(config, thing.band)
            assert low * resolution <= thing.side <= high * resolution


def test_box_is_that_of_the_visible_pixels() -> None:
    config = SceneConfig(light=0, noise=0, color_jitter=0)
    rng = Rng(1)
    canvas = Canvas(config, rng)
    canvas.pixels[:] = 128
    square = Thing("square", "red", "plain", "medium", "square", 20, 0)
    cutout = cut_out(square, rng)
    canvas.paint(square, cutout, 30, 40, 0)
    rows, columns = (canvas.owner == 0).nonzero()
    assert {np.ptp(rows) + 1, np.ptp(columns) + 1} <= {20, 21}
    red = canvas.pixels[..., 0] - canvas.pixels[..., 1] > 60
    assert (red == (canvas.owner == 0)).mean() > 0.995
    canvas.paint(square, cutout, 40, 40, 1)  # hides the right half
    assert (canvas.owner == 0).nonzero()[1].max() == columns.min() + 9


def test_things_stay_visible(scenes) -> None:
    for sample in (s for split in scenes.values() for s in split):
        for thing in sample.things:
            x1, y1, x2, y2 = thing.box
            # the longer side may be turned, hidden or cut by 40 % at most, thin parts aside
            assert max(x2 - x1, y2 - y1) + 1 >= 0.35 * thing.side
            assert max(x2 - x1, y2 - y1) + 1 <= 1.45 * thing.side + 2


# -- words -----------------------------------------------------------------------------------------


def test_spans_are_the_words_and_follow_each_other(scenes) -> None:
    for sample in (s for split in scenes.values() for s in split):
        flat = [span for row in sample.prompt.spans for span in row]
        assert flat == sorted(flat)
        assert all(end <= begin for (_, end), (begin, _) in zip(flat, flat[1:]))
        assert len(sample.box_spans) == len(sample.boxes) == len(sample.labels)
        assert sample.labels.max(initial=-1) < len(sample.rows)
        assert (sample.names is None) == (not sample.prompt.exact)


@pytest.mark.parametrize("split", ["detection", "unseen", "novel_train", "novel"])
def test_listed_names_own_every_thing_they_fit(scenes, split: str) -> None:
    absent = near = 0
    styles = {("thing" in name, " " in name) for sample in scenes[split] for name in sample.names}
    assert styles == ({(False, True)} if split == "unseen" else {(False, False), (False, True), (True, True)})
    for sample in scenes[split]:
        assert len(set(sample.names)) == len(sample.names) >= 2
        for row, name in enumerate(sample.names):
            there = sorted(thing.box for thing in sample.things if fits(thing, name))
            assert sorted(map(tuple, sample.boxes[sample.labels == row])) == there
            absent += not there
            pair = name.split()
            near += not there and any(word in (thing.color, thing.kind) for thing in sample.things for word in pair)
    assert absent > 60 and near > absent / 3


@pytest.mark.parametrize("split", ["train", "sentences", "relations"])
def test_sentences_are_true_and_clear(scenes, split: str) -> None:
    told = set()
    for sample in scenes[split]:
        if sample.names is not None:
            continue
        for row, phrase in enumerate(sample.rows):
            boxes = sorted(map(tuple, sample.boxes[sample.labels == row]))
            fitting = sorted(thing.box for thing in sample.things if fits(thing, phrase))
            if row == sample.by_relation:
                assert len(boxes) == 1 and len(fitting) == 2 and boxes[0] in fitting
            else:
                assert boxes == fitting
                assert len(boxes) == next((n for n, w in NUMBERS.items() if w in phrase.split()), 1)
            if row + 1 < len(sample.rows):
                between = sample.caption[sample.prompt.spans[row][0][1] : sample.prompt.spans[row + 1][0][0]]
                relation = WORD_RELATION.get(between.strip())
                if relation is not None:
                    told.add(relation)
                    reference = tuple(sample.boxes[sample.labels == row + 1][0])
                    assert holds(relation, boxes[0], reference, CONFIG), sample.caption
                    if row == sample.by_relation:
                        twin = next(box for box in fitting if box != boxes[0])
                        assert fails(relation, twin, reference, CONFIG), sample.caption
    assert told == set(RELATION_WORDS)


def test_like_things_of_a_riddle_differ_in_nothing(scenes) -> None:
    for sample in scenes["relations"]:
        assert sample.by_relation == 0
        target, twin = (t for t in sample.things if fits(t, sample.rows[0]))
        for word in ("kind", "color", "pattern", "band", "side"):
            assert getattr(target, word) == getattr(twin, word)


@pytest.mark.parametrize(
    ("relation", "a", "b", "true", "false"),
    [
        ("left", (10, 50, 29, 69), (60, 55, 79, 74), True, False),
        ("right", (10, 50, 29, 69), (60, 55, 79, 74), False, True),
        ("left", (10, 0, 29, 19), (60, 80, 79, 99), False, False),  # more above than left
        ("left", (50, 50, 69, 69), (60, 50, 79, 69), False, False),  # hardly left
        ("above", (10, 0, 29, 19), (20, 80, 39, 99), True, False),
        ("below", (10, 0, 29, 19), (20, 80, 39, 99), False, True),
        ("near", (10, 10, 29, 29), (35, 10, 50, 29), True, False),
        ("near", (10, 10, 29, 29), (60, 10, 80, 29), False, False),
        ("near", (10, 10, 29, 29), (100, 10, 120, 29), False, True),
    ],
)
def test_relations_by_hand(relation, a, b, true, false) -> None:
    assert holds(relation, a, b, CONFIG) is true
    assert fails(relation, a, b, CONFIG) is false


# -- what is held out ------------------------------------------------------------------------------


def test_held_out_pairs_are_fixed_and_leave_every_word() -> None:
    assert len(HELD_OUT) == len(KINDS) == 16 and ("blue", "ring") in HELD_OUT
    assert {color for color, _ in HELD_OUT} == set(COLORS)


@pytest.mark.parametrize("split", ["train", "detection", "sentences", "relations", "novel_train"])
def test_held_out_pairs_are_neither_shown_nor_mentioned(scenes, split: str) -> None:
    for sample in scenes[split]:
        assert not {(t.color, t.kind) for t in sample.things} & HELD_OUT
        for phrase in sample.rows:
            words = phrase.split()
            kind = SINGULAR.get(words[-1], words[-1])
            assert not any((word, kind) in HELD_OUT for word in words[:-1])


def test_unseen_and_novel_scenes_show_what_training_does_not(scenes) -> None:
    shown = {(t.color, t.kind) for sample in scenes["unseen"] for t in sample.things}
    assert len(shown & HELD_OUT) >= 15
    for split, samples in scenes.items():
        kinds = {thing.kind for sample in samples for thing in sample.things}
        assert (set(NOVEL_KINDS) <= kinds) == split.startswith("novel")


# -- tokens ----------------------------------------------------------------------------------------


def test_vocabulary_is_the_one_that_our_script_makes() -> None:
    path = ROOT / "scripts/make_vocabulary.py"
    spec = importlib.util.spec_from_file_location("make_vocabulary", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    entries = script.make_vocabulary()
    assert VOCABULARY.read_text(encoding="utf-8").splitlines() == entries
    assert len(entries) <= 2000
    assert set(vocabulary()) <= set(entries)


def test_scenes_speak_whole_words_that_their_spans_own(scenes) -> None:
    tokenizer = BertTokenizer(vocab=str(VOCABULARY), do_lower_case=True)
    assert tokenizer.unk_token not in tokenizer.tokenize("quixotic jazz, 1,024 Z\u00fcrich!")
    for sample in (s for split in scenes.values() for s in split):
        encoding = tokenizer(sample.caption)[0]
        assert not any(token.startswith("##") or token == "[UNK]" for token in encoding.tokens)
        rows = positive_map(encoding.offsets, sample.prompt.spans)
        for row, words in zip(rows, sample.rows, strict=True):
            assert [encoding.tokens[t] for t in np.flatnonzero(row)] == words.split()


# -- ways out --------------------------------------------------------------------------------------


def test_record_and_annotation_carry_the_sample() -> None:
    sample = make_scene("sentences", 0, 0)
    record = sample.record()
    assert np.array_equal(np.asarray(record.image.load()), sample.image)
    assert record.caption == sample.caption and record.spans == sample.box_spans
    assert (record.width, record.height) == (160, 160)
    for box, thing in zip(sample.boxes, sample.annotation()["annotations"]):
        x, y, w, h = thing["bbox"]
        assert [x, y, x + w - 1, y + h - 1] == box.tolist()


def test_contact_sheet_shows_truth_or_detections() -> None:
    samples = list(SceneDataset("train", 3, seed=0))
    truth = contact_sheet(samples, columns=2, scale=1)
    nothing = [{"boxes": [], "labels": []}] * 3
    assert truth.size == (2 * 164, 2 * 208)
    assert np.any(np.asarray(truth) != np.asarray(contact_sheet(samples, 2, 1, nothing)))
