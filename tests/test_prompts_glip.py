# Copyright 2026 The glip_hf authors. MIT licence.
"""Class names and phrases to captions, spans and positive maps."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from glip_hf.data.dataset import greenlight_map
from glip_hf.prompts_glip import (
    Name,
    build_prompt,
    build_prompts,
    check_span,
    chunk,
    clean_name,
    find_phrase,
    make_names,
    positive_map,
)

VOCAB = Path(__file__).parent / "fixtures" / "tokenizer" / "vocab.txt"


@pytest.fixture(scope="module")
def tokenizer():
    """Our small vocabulary of some 350 pieces: every ASCII text has tokens, common words have
    one."""
    return BertTokenizer(str(VOCAB))


@pytest.fixture(scope="module")
def bert(request):
    """The vocabulary the released models use."""
    shared = request.getfixturevalue("shared")
    return BertTokenizer(str(shared / "data" / "tokenizer" / "vocab.txt"))


def encode(tokenizer, caption, **options):
    return tokenizer(caption, verbose=False, **options).encodings[0]


def row_tokens(offsets, spans, num_tokens=None, exact=False):
    """The tokens of each row, ascending."""
    rows = positive_map(offsets, spans, num_tokens, exact=exact, normalize=False)
    return [np.flatnonzero(row).tolist() for row in rows]


def prompt_tokens(prompt, encoding):
    return row_tokens(encoding.offsets, prompt.spans, exact=prompt.exact)


# -- by hand ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("", ""),
        ("trash_can", "trash can"),
        ("arctic_(type_of_shoe)", "arctic "),
        ("x_(a)_y_(b)", "x "),
        ("a__b", "a b"),
        ("a___b", "a  b"),
        ("__background__", " background "),
        ("_(only)", " "),
        ("(none)", "(none)"),
        ("a(b)c", "a(b)c"),
        ("bolt (rusty)", "bolt (rusty)"),
        ("person (standing) near car (red)", "person (standing) near car (red)"),
        ("monitor_(computer_equipment) computer_monitor", "monitor computer monitor"),
        ("open (bracket", "open (bracket"),
    ],
)
def test_clean_name(name, cleaned):
    assert clean_name(name) == cleaned


@pytest.mark.parametrize(
    ("length", "size", "lengths"),
    [
        (0, 5, []),
        (0, None, []),
        (1, 1, [1]),
        (41, 40, [40, 1]),
        (80, 81, [80]),
        (7, None, [7]),
        (7, -1, [7]),
    ],
)
def test_chunk(length, size, lengths):
    parts = chunk(list(range(length)), size)
    assert [len(part) for part in parts] == lengths
    assert [item for part in parts for item in part] == list(range(length))


@pytest.mark.parametrize("size", [0, -2])
def test_chunk_refuses_invalid_sizes(size):
    with pytest.raises(ValueError, match=f"chunk_size={size}"):
        chunk([1], size)


def test_spans_are_noted_not_searched():
    """A "car" after a "cart" keeps its own span."""
    prompt = build_prompt(make_names(["cart", "car", "cart"]))
    assert prompt.caption == "cart. car. cart"
    assert prompt.spans == [[(0, 4)], [(6, 9)], [(11, 15)]]
    assert prompt.label_ids == [0, 1, 2]


def test_caption_prompts_own_only_their_name():
    names = make_names(
        [
            {"prefix": " ", "name": "fish", "suffix": ""},
            {"prefix": "", "name": "pen_guin", "suffix": " , black and white"},
            {"name": "shark"},
        ]
    )
    prompt = build_prompt(names)
    assert prompt.caption == " fish. pen_guin , black and white. shark"
    assert [prompt.caption[b:e] for ((b, e),) in prompt.spans] == ["fish", "pen_guin", "shark"]


def test_affixes_for_all_names_or_for_each():
    names = make_names(["red_cat", "dog"], prefix="a ", suffix=["", " outside"])
    assert build_prompt(names).caption == "a red cat. a dog outside"
    with pytest.raises(ValueError, match="suffix has 1 entries for 2 names"):
        make_names(["cat", "dog"], suffix=["x"])


@pytest.mark.parametrize("entry", [3, None, b"cat", {"prefix": "a"}, {"name": "a", "suffx": "b"}, ["cat"]])
def test_names_must_be_text(entry):
    with pytest.raises(TypeError, match="name 1 is"):
        make_names(["cat", entry])


def test_negative_names_follow_and_own_nothing(tokenizer):
    (prompt,) = build_prompts(make_names(["cat", "dog"]), tokenizer, negative_names=["sky", "background"])
    assert prompt.caption == "cat. dog. sky. background"
    assert prompt_tokens(prompt, encode(tokenizer, prompt.caption)) == [[1], [3]]
    assert build_prompt([], negative_names=["sky"]).caption == "sky"


def test_name_tokens_are_the_names_own(tokenizer):
    caption = "cat    . dog"
    offsets = encode(tokenizer, caption).offsets
    assert row_tokens(offsets, [[(0, 7)], [(0, 0)], [(3, 6)]], exact=True) == [[1], [], []]
    # The original's rule gives up after three spaces, and the original crashes on a span that ends at 0.
    assert row_tokens(offsets, [[(0, 7)], [(0, 0)]]) == [[], []]


@pytest.mark.parametrize("first", ["_(only)", "\0", "​", "   "])
def test_a_name_without_tokens_takes_none_of_its_neighbours(tokenizer, first):
    (prompt,) = build_prompts(make_names([first, "cat", first, "dog"]), tokenizer)
    rows = prompt_tokens(prompt, encode(tokenizer, prompt.caption))
    assert [len(row) for row in rows] == [0, 1, 0, 1]


def test_a_caption_fills_up_to_the_last_token(tokenizer):
    """127 names of one token and 126 periods are 253 tokens, 255 with [CLS] and [SEP]; one more is
    257."""
    (prompt,) = build_prompts(make_names(["cat"] * 127), tokenizer)
    assert len(tokenizer(prompt.caption)["input_ids"]) == 255
    first, second = build_prompts(make_names(["cat"] * 128), tokenizer)
    assert (len(first.label_ids), second.label_ids) == (127, [127])
    (prompt,) = build_prompts(make_names(["cat"] * 126 + ["hot dog"]), tokenizer)
    assert len(tokenizer(prompt.caption)["input_ids"]) == 256


def test_a_name_that_fits_no_caption_is_named(tokenizer):
    assert len(build_prompts(make_names(["cat " * 254]), tokenizer)) == 1
    with pytest.raises(ValueError, match="the name 'dog dog.*has 255 tokens, but a caption holds 254"):
        build_prompts(make_names(["cat", "dog " * 255]), tokenizer)
    with pytest.raises(ValueError, match="negative names take 25. tokens"):
        build_prompts(make_names(["cat"]), tokenizer, negative_names=["sky"] * 127)
    with pytest.raises(ValueError, match="holds 252 .* and negative names"):
        build_prompts(make_names(["dog " * 253]), tokenizer, negative_names=["sky"])


def test_class_names_that_run_together_still_fit(tokenizer):
    """Without a separator class names join into new words: costs do not add up, captions must fit all the
    same."""
    prompts = build_prompts(make_names(["cat", "zebra", "dog"] * 100), tokenizer, separator="")
    assert [label for prompt in prompts for label in prompt.label_ids] == list(range(300))
    assert all(len(tokenizer(prompt.caption)["input_ids"]) <= 256 for prompt in prompts)


def test_find_phrase():
    caption = "a cart and a car, a red car"
    assert find_phrase(caption, "cart") == (2, 6)
    assert find_phrase(caption, "red car") == (20, 27)
    assert find_phrase(caption, "car", 1) == (13, 16)
    assert find_phrase("aaa", "aa", 1) == (1, 3)
    with pytest.raises(ValueError, match="'car' occurs 3 times .*0: character 2.*1: character 13.*2: char"):
        find_phrase(caption, "car")
    with pytest.raises(ValueError, match="'Car' is not in the caption 'a cart"):
        find_phrase(caption, "Car")
    with pytest.raises(ValueError, match="occurrence 3 .* has 3"):
        find_phrase(caption, "car", 3)
    with pytest.raises(ValueError, match="occurrence -1"):
        find_phrase(caption, "car", -1)
    with pytest.raises(ValueError, match="empty phrase"):
        find_phrase(caption, "")


@pytest.mark.parametrize("span", [(0, 0), (3, 1), (-1, 2), (0, 6), (5, 6), "ab", (1,), (0.5, 2), None])
def test_spans_outside_the_caption_are_refused(span):
    with pytest.raises(ValueError, match="span"):
        check_span("a cat", span)


def test_check_span():
    assert check_span("a cat", np.array([2, 5])) == (2, 5)


def test_greenlight_map_by_hand(tokenizer):
    offsets = encode(tokenizer, "cat. hot dog. bird").offsets
    assert np.flatnonzero(greenlight_map(offsets, [[5, 12]], 8)).tolist() == [3, 4]
    assert (greenlight_map(offsets, [[0, 3], [-1, -1, -1]], 8) == -1).all()


# -- properties ------------------------------------------------------------------------------------

NAMES = st.lists(st.text(max_size=40), min_size=1, max_size=30)
SEPARATORS = st.sampled_from([". ", " ", ", ", "", " . ", "-"])


@given(
    NAMES,
    SEPARATORS,
    st.lists(st.text(max_size=8), max_size=3),
    st.text(max_size=5),
    st.text(max_size=5),
)
def test_spans_cut_out_exactly_the_names(names, separator, negatives, prefix, suffix):
    made = make_names(names, prefix, suffix)
    prompt = build_prompt(made, separator, negatives)
    cut = [prompt.caption[begin:end] for ((begin, end),) in prompt.spans]
    assert cut == [clean_name(name) for name in names]
    assert prompt.caption == separator.join([prefix + name + suffix for name in cut] + negatives)


@settings(deadline=None, max_examples=50)
@given(NAMES, SEPARATORS, st.sampled_from([None, 1, 3, 40]), st.sampled_from([60, 256]), st.booleans())
def test_chunks_keep_order_and_never_exceed_their_limits(names, separator, size, max_length, negative):
    tokenizer = BertTokenizer(str(VOCAB))
    negatives = ["sky"] if negative else []
    prompts = build_prompts(make_names(names), tokenizer, separator, negatives, size, max_length)
    assert [label for prompt in prompts for label in prompt.label_ids] == list(range(len(names)))
    for prompt in prompts:
        encoding = encode(tokenizer, prompt.caption)
        assert len(encoding.ids) <= max_length
        assert 0 < len(prompt.label_ids) <= (size or len(names))
        if separator in {
            ". ",
            ", ",
            " . ",
        }:  # boundaries of words: a name's tokens are those it has alone
            for row, label in zip(prompt_tokens(prompt, encoding), prompt.label_ids, strict=True):
                alone = tokenizer(clean_name(names[label]), add_special_tokens=False)["input_ids"]
                assert [encoding.ids[token] for token in row] == alone


def original_rule(encoding, begin, end):
    """The tokens of a span by `char_to_token`, as the original looks them up, to the last token of its end."""

    def first(characters):
        found = (encoding.char_to_token(character) for character in characters if character >= 0)
        return next((token for token in found if token is not None), None)

    start, stop = first(range(begin, begin + 3)), first(range(end - 1, end - 4, -1))
    if start is None or stop is None:
        return []
    return range(start, 1 + max(n for n, offsets in enumerate(encoding.offsets) if offsets == encoding.offsets[stop]))


@settings(deadline=None)
@given(st.text(max_size=60), st.lists(st.tuples(st.integers(-3, 70), st.integers(-3, 70)), max_size=6))
def test_maps_agree_and_cover_real_tokens_only(caption, spans):
    encoding = encode(BertTokenizer(str(VOCAB)), caption)
    rows = [[span] for span in spans] + [spans]
    dense = positive_map(encoding.offsets, rows, 256)
    assert dense.shape == (len(rows), 256) and dense.dtype == np.float32
    binary = positive_map(encoding.offsets, rows, 256, normalize=False)
    assert binary.dtype == bool and (binary == (dense != 0)).all()
    for row, row_spans in zip(binary, rows, strict=True):
        expected = sorted({token for span in row_spans for token in original_rule(encoding, *span)})
        assert np.flatnonzero(row).tolist() == expected
    covered = np.flatnonzero(dense.any(0))
    assert all(0 < token < len(encoding.ids) - 1 for token in covered)
    sums = dense.sum(-1)
    assert ((sums == 0) | (abs(sums - 1) < 1e-5)).all()


# -- the reference's own results -------------------------------------------------------------------


def load(shared, path):
    return json.loads((shared / path).read_text())


def caption_cases(shared):
    """Every detection case of data/captions: a name for the report, and the case."""
    folder = shared / "data" / "captions"
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        if path.name == "odinw_queries.json":
            for task, kinds in content.items():
                yield from ((f"{task}/{kind}", kinds[kind]) for kind in kinds if kind != "categories")
        elif path.name == "query_variants.json":
            yield from ((case["name"], case) for case in content)
        elif "queries" in content:
            yield path.name, content


def as_the_original_cleans(names):
    """Names for which parentheses without an underscore before them, which we leave, are removed as in the original."""
    other = re.compile(r"(?<!_)\(.*\)")
    return [{"name": other.sub("", name).replace("_", " ")} if other.search(name) else name for name in names]


def test_clean_name_and_chunk_as_the_original(shared):
    others = []
    for case in load(shared, "data/captions/clean_name.json"):
        if clean_name(case["input"]) != case["output"]:
            others.append(case["input"])
    assert sorted(others) == ["(a)(b) c", "(only)", "a(b)c"]  # not in the manner of LVIS: nothing is removed
    for case in load(shared, "data/captions/chunks.json"):
        assert [len(part) for part in chunk(range(case["length"]), case["size"])] == case["lengths"]


def test_detection_captions_as_the_original(shared, bert):
    seen = 0
    for title, case in caption_cases(shared):
        by_id = sorted(zip(case["class_ids"], case["class_names"], strict=True))
        class_ids = [class_id for class_id, _ in by_id]
        prompts = build_prompts(
            make_names(case["caption_prompt"] or as_the_original_cleans([name for _, name in by_id])),
            bert,
            separator=case["separation_tokens"],
            negative_names=case["additional_labels"] or (),
            chunk_size=case["chunk_size"],
        )
        assert len(prompts) == len(case["queries"]), title
        for prompt, query in zip(prompts, case["queries"], strict=True):
            assert prompt.caption == query["query"], title
            encoding = encode(bert, prompt.caption)
            assert len(encoding.ids) == query["num_tokens_untruncated"], title
            rows = zip(prompt.label_ids, prompt_tokens(prompt, encoding), strict=True)
            tokens = {str(class_ids[label]): row for label, row in rows if row}
            assert tokens == query["label_to_token"], title
            seen += 1
    assert seen > 50


def test_positive_maps_as_the_original(shared, bert):
    for case in load(shared, "data/positive_maps/grounding_positive_maps.json"):
        title, spans = case["name"], case["tokens_positive"]
        options = {"truncation": True, "max_length": case["max_length"]} if case["truncation"] else {}
        encoding = encode(bert, case["caption"], **options)
        assert encoding.ids == case["input_ids"], title
        dense = positive_map(encoding.offsets, spans, 256)
        if "raises" in case:  # zero width at 0: the original crashes, here the span has no tokens
            assert not dense.any(), title
            continue
        assert list(dense.shape) == case["shape"], title
        expected = np.zeros(case["shape"], dtype=np.float32)
        for row, column, value in case["raw"]:
            expected[row, column] = value
        np.testing.assert_allclose(dense, expected, rtol=1e-6, atol=0, err_msg=title)
        np.testing.assert_allclose(dense.sum(-1), case["row_sums"], rtol=1e-6, err_msg=title)
        assert [list(map(int, pair)) for pair in zip(*dense.nonzero(), strict=True)] == case["binary"]
        tokens = {str(row): found for row, found in enumerate(row_tokens(encoding.offsets, spans, 256), start=1)}
        assert tokens == case["label_to_token_plus1"], title


def test_greenlight_map_as_the_original(shared, bert):
    cases = load(shared, "data/positive_maps/greenlight_and_od_label_maps.json")
    for case in cases["greenlight_map"]:
        offsets = encode(bert, case["caption"], truncation=True, max_length=256).offsets
        vector = greenlight_map(offsets, case["spans"], case["length"])
        assert str(vector.dtype) == case["dtype"]
        assert bool((vector == -1).all()) == case["minus_ones_all"], case["name"]
        assert np.flatnonzero(vector == 1).tolist() == case["ones"], case["name"]


def test_parity_captions_and_spans(shared, bert):
    cases = load(shared, "parity/preprocessing/cases.json")
    for case in cases["class_list_to_caption"]:
        (prompt,) = build_prompts(make_names(as_the_original_cleans(case["classes"])), bert)
        encoding = encode(bert, prompt.caption)
        assert (prompt.caption, encoding.ids) == (case["caption"], case["input_ids"])
        rows = {str(row): tokens for row, tokens in enumerate(prompt_tokens(prompt, encoding), start=1)}
        assert rows == case["label_to_token"]
    for case in cases["char_spans_to_token_map"]:
        encoding = encode(bert, case["caption"])
        assert encoding.ids == case["input_ids"]
        assert row_tokens(encoding.offsets, case["char_spans"]) == case["token_indices"]
        values = positive_map(encoding.offsets, case["char_spans"]).max(-1)
        np.testing.assert_allclose(values, case["row_value"], rtol=1e-6)


def test_parity_positive_maps_of_whole_runs(shared, bert):
    runs = []
    for path in sorted((shared / "parity").glob("*_inference/*.json")):
        case = json.loads(path.read_text())
        runs += zip(case["captions"], case["classes"], case["positive_maps"], strict=True)
    for path in sorted((shared / "parity" / "full").glob("*.json")):
        case = json.loads(path.read_text())
        runs.append((case["caption"], case["classes"], case["positive_map"]))
    assert len(runs) >= 8
    for caption, classes, expected in runs:
        (prompt,) = build_prompts(make_names(classes), bert)
        assert prompt.caption == caption
        rows = enumerate(prompt_tokens(prompt, encode(bert, caption)), start=1)
        assert {str(row): tokens for row, tokens in rows} == expected


def test_name_equality_and_full_text():
    assert Name("cat", 0) == Name("cat", 0) and Name("cat", 0, "a ", " b").full_text == "a cat b"
