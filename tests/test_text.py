# Copyright 2026 The glip_hf authors. MIT licence.
"""How text is read: list or caption, in the processor, the pipeline and the command line; every script; warnings."""

import json
import random
import unicodedata
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from random_glip import PHOTO
from tiny import make_processor

from glip_hf.cli import build_parser, main
from glip_hf.cli.ground import TEXT_RULE, read_words
from glip_hf.data.sampling import DetectionCaptions
from glip_hf.noun_phrases_glip import read_phrases
from glip_hf.pipeline import GlipZeroShotObjectDetectionPipeline
from glip_hf.prompts_glip import clean_name

IMAGE = Image.new("RGB", (60, 40))


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def bert_processor(request):
    return make_processor(request.getfixturevalue("shared") / "data" / "tokenizer" / "vocab.txt")


def spelled(processor, inputs, caption=0):
    """What the tokens of each row spell."""
    ids, rows = inputs["input_ids"][caption], inputs["positive_map"][caption]
    return [
        processor.tokenizer.decode(ids[row]) for row, label in zip(rows, inputs["label_ids"][caption]) if label >= 0
    ]


@pytest.fixture
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# -- lists and captions ----------------------------------------------------------------------------

LISTS = {
    "stop sign. orange. apple.": ["stop sign", "orange", "apple"],
    "red light. yellow light. green light.": ["red light", "yellow light", "green light"],
    "red light, yellow light, green light": ["red light", "yellow light", "green light"],
    "person with helmet. person without helmet.": ["person with helmet", "person without helmet"],
    "person wearing a helmet; person not wearing a helmet": ["person wearing a helmet", "person not wearing a helmet"],
    "person wearing a hard hat. person not wearing a hard hat.": [
        "person wearing a hard hat", "person not wearing a hard hat",
    ],
    "hand holding a phone. person talking on a mobile phone. empty hand.": [
        "hand holding a phone", "person talking on a mobile phone", "empty hand",
    ],
    "человек в защитной каске без сигнального жилета. человек в каске.": [
        "человек в защитной каске без сигнального жилета", "человек в каске",
    ],
    "person is smoking. person is drinking.": ["person is smoking", "person is drinking"],
    "cat. dog. smoking. drinking.": ["cat", "dog", "smoking", "drinking"],
    "up arrow; down arrow": ["up arrow", "down arrow"],
    "open. closed.": ["open", "closed"],
    "driving licence": ["driving licence"],
    "chewing gum": ["chewing gum"],
    "cat. dog.": ["cat", "dog"],
    "cat . dog .": ["cat", "dog"],
    "cat.dog": ["cat", "dog"],
    "cat, dog": ["cat", "dog"],
    "cat,dog,bird": ["cat", "dog", "bird"],
    "yellow cross,fish": ["yellow cross", "fish"],
    "cat\ndog\r\nbird": ["cat", "dog", "bird"],
    "a person with a mask, a person without a mask": ["a person with a mask", "a person without a mask"],
    "on. off.": ["on", "off"],
    "trash can": ["trash can"],
    "pen/pencil": ["pen/pencil"],
    "stop sign": ["stop sign"],
    "cat, dog and bird": ["cat", "dog", "bird"],
    "a cat, a dog, and a bird": ["a cat", "a dog", "a bird"],
    "dog, black and white cow": ["dog", "black and white cow"],
    "salt and pepper. bread.": ["salt and pepper", "bread"],
    "human being. trash can.": ["human being", "trash can"],
    "no smoking sign; no entry sign": ["no smoking sign", "no entry sign"],
    "bolt (rusty, old), nut": ["bolt (rusty, old)", "nut"],
    "3.5 mm jack, usb-c plug": ["3.5 mm jack", "usb-c plug"],
    "1,000 dollar bill. coin.": ["1,000 dollar bill", "coin"],
    "0,1,2": ["0", "1", "2"],
    "A. B. C.": ["A", "B", "C"],
    "U.S. flag. St. Bernard. Mr. Bean.": ["U.S. flag", "St. Bernard", "Mr. Bean"],
    "猫，狗、鸟。": ["猫", "狗", "鸟"],
    "قطة، كلب": ["قطة", "كلب"],
    "trash_can; fire_hydrant": ["trash_can", "fire_hydrant"],
}  # fmt: skip
CAPTIONS = {
    "two cats on a pink sofa": ["two cats", "a pink sofa"],
    "cat on sofa": ["cat", "sofa"],
    "cat and dog": ["cat", "dog"],
    "The cat is black. The dog is white.": ["The cat", "The dog"],
    "A dog runs. A cat sleeps.": ["A dog", "A cat"],
    "a big, red bus": ["a big, red bus"],
    "In the park, a dog runs": ["the park", "a dog"],
    "where is the cat?": ["the cat"],
    "a photo of a cat": ["a cat"],
    "A dog. It barks.": ["A dog"],
    "a man in a blue and red\nshirt and a dog": ["a man", "a blue and red\nshirt", "a dog"],
    "a dog runs": ["a dog"],
    "a large, shaggy dog sleeps under the kitchen table": ["a large, shaggy dog", "the kitchen table"],
    "Two dogs in the snow near a fence. A man.": ["Two dogs", "the snow", "a fence", "A man"],
    "the man with the red hat runs. a dog.": ["the man", "the red hat", "a dog"],
    "a man in a red hat, walking his dog on the beach": ["a man", "a red hat", "his dog", "the beach"],
    "a bowl of oranges, two bananas and a knife on the counter": [
        "a bowl of oranges", "two bananas", "a knife", "the counter",
    ],
    "the dotted yellow cross to the left of a fish. red light. orange.": [
        "the dotted yellow cross", "a fish", "red light", "orange",
    ],
}  # fmt: skip


@pytest.mark.parametrize("text", LISTS)
def test_short_pieces_are_a_list(processor, text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*cannot spell")  # Chinese and Arabic, in our small vocabulary
        inputs = processor(text=text, return_tensors="pt")
        same = processor(text=LISTS[text], return_tensors="pt")
    assert inputs.text_labels == [LISTS[text]]
    assert all(inputs[key].equal(same[key]) for key in same)
    assert spelled(processor, inputs) == spelled(processor, same)
    assert words(text) == words("--names", text) == (LISTS[text], None)
    preprocess = GlipZeroShotObjectDetectionPipeline.preprocess
    assert preprocess(SimpleNamespace(image_processor=processor.image_processor), IMAGE, text)["text"] == LISTS[text]


def words(*text: str) -> tuple[list[str] | None, str | None]:
    """Class names and caption of a command line."""
    return read_words(build_parser().parse_args(["ground", str(PHOTO), *text, "--model", "m"]))[1:]


@pytest.mark.parametrize("text", CAPTIONS)
def test_other_texts_are_captions(processor, no_warnings, text):
    inputs = processor(text=text, return_tensors="pt")
    assert inputs.text_labels == [CAPTIONS[text]]
    assert inputs["input_ids"][0].tolist() == processor.tokenizer(text)["input_ids"]
    assert words(text) == (None, text)


def test_the_rule_holds_for_each_text_and_for_targets(processor, no_warnings):
    """A list per image; with annotations, whose spans count characters, a list keeps its own caption."""
    inputs = processor(text=[["cat"], "dog. bird.", "two cats on a pink sofa"], return_tensors="pt")
    assert inputs.text_labels == [["cat"], ["dog", "bird"], ["two cats", "a pink sofa"]]
    text = "cat,  hot dog."
    boxes = [{"bbox": [0, 0, 9, 9], "category_id": 1}, {"bbox": [0, 0, 9, 9], "tokens_positive": [[0, 3]]}]
    inputs = processor(IMAGE, text, annotations={"image_id": 1, "annotations": boxes}, return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == processor.tokenizer(text)["input_ids"]
    assert inputs["labels"][0]["positive_map"].nonzero().tolist() == [[0, 3], [0, 4], [1, 1]]


def test_a_long_list_fills_several_captions(processor, no_warnings):
    names = [f"{a} {b}" for a in ("red", "hot", "big", "two") for b in range(100)]
    inputs = processor(text="; ".join(names), return_tensors="pt")
    assert inputs.text_labels == [names] and len(inputs["input_ids"]) > 1
    inputs = processor(text="cat. dog. bird.", chunk_size=1, negative_names=["sky"], return_tensors="pt")
    assert [processor.decode(ids, skip_special_tokens=True) for ids in inputs["input_ids"]] == [
        "cat. sky", "dog. sky", "bird. sky",
    ]  # fmt: skip


def test_the_names_of_the_benchmarks_joined_are_the_names(shared):
    for file in ("coco80_one_query", "objects365_v2_chunk80", "lvis_v1_chunk40"):
        case = json.loads((shared / "data" / "captions" / f"{file}.json").read_text())
        names = [name.strip() for name in case["class_names"]]
        for separator in (". ", ", ", ",", "; ", " . ", "\n"):
            text = separator.join(names)
            spans, is_list = read_phrases(text)
            assert is_list and [text[begin:end] for begin, end in spans] == names, (file, separator)


@pytest.mark.parametrize("text", [" running ", "it is there", "is running and jumping", "...", "of the"])
def test_a_caption_without_a_phrase_warns(processor, text):
    with pytest.warns(UserWarning, match="no noun phrase was found in .*phrases="):
        inputs = processor(text=text, return_tensors="pt")
    assert inputs.text_labels == [[text.strip()]]


def test_the_rule_is_shown(capsys):
    with pytest.raises(SystemExit):
        main(["ground", "--help"])
    assert TEXT_RULE in capsys.readouterr().out
    page = (Path(__file__).parents[1] / "docs" / "ground.md").read_text(encoding="utf-8")
    assert "".join(f"- {line}\n" for line in TEXT_RULE.splitlines()) in page and TEXT_RULE.count("\n") == 5


# -- class names that are not what they seem -------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "text", "message"),
    [
        (
            2,
            ["a cat. a remote control.", "a dog."],
            r"'a cat. a remote control.' \(and 1 more\) .*'a remote control'.*",
        ),
        (1, ["a cat. a remote control."], r"give each on its own: \['a cat', 'a remote control'\]"),
        (1, ["cat, dog"], r"\['cat', 'dog'\]"),
        (1, ["yellow cross,fish", "bird"], r"\['yellow cross', 'fish'\]"),
        (2, [["cat. dog"], ["bird"]], r"text\[0\] is a list of class names, so 'cat. dog' is .* as one of them"),
        (2, ["two cats on a pink sofa", "a dog"], r"class names for each, .* or captions with phrases=\[None, "),
        (
            1,
            ["cat", "traffic light."],
            r"'traffic light.' is looked for as one of them. If the full stop is not part of it",
        ),
    ],
)
def test_class_names_that_read_like_lists_or_captions_warn(processor, images, text, message):
    with pytest.warns(UserWarning, match=message):
        processor(images=[IMAGE] * images, text=text)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "dog", "cat"], r"'cat' \(as 'cat', 2 times\)"),
        (["Cat", "c\u00e1t", "ca\u0301t ", "dog"], r"'Cat', 'c.t', .* \(as 'cat', 3 times\)"),
        (["bolt_(rusty)", "bolt_(new)"], r"'bolt_\(rusty\)', 'bolt_\(new\)' \(as 'bolt', 2 times\)"),
        (["traffic_light", "traffic light"], "as 'traffic light'"),
    ],
)
def test_class_names_that_read_the_same_warn(processor, names, message):
    with pytest.warns(UserWarning, match=message):
        inputs = processor(text=names)
    assert inputs.text_labels == [names]
    with pytest.warns(UserWarning, match=message):  # in training, before it starts
        DetectionCaptions(dict(enumerate(names)), processor.tokenizer, "all")


@pytest.mark.parametrize(
    "names",
    [
        ["bolt (rusty)", "bolt (new)"],
        ["(none)", "(only)"],
        ["person (standing) near car (red)"],
        ["St. Bernard", "U.S. flag", "3.5 mm jack"],
        ["bow_(weapon)", "arrow"],
        [{"name": "fish", "prefix": "red "}, {"name": "fish", "prefix": "black "}],
    ],
)
def test_class_names_are_asked_as_they_are_written(bert_processor, no_warnings, names):
    inputs = bert_processor(text=names, return_tensors="pt")
    for row, name in zip(inputs["positive_map"][0], names, strict=True):
        name = clean_name(name) if isinstance(name, str) else name["name"]
        expected = bert_processor.tokenizer(name, add_special_tokens=False)["input_ids"]
        assert expected and inputs["input_ids"][0][row].tolist() == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": ["caf\udce9"]}, r"'caf\\udce9' is not valid Unicode"),
        ({"text": "a caf\udce9 on the moon"}, "not valid Unicode"),
        ({"text": ["cat"], "prefix": "\ud800"}, "not valid Unicode"),
        ({"text": ["cat"], "negative_names": ["\ud800"]}, "not valid Unicode"),
    ],
)
def test_text_that_no_tokenizer_takes_is_refused(processor, options, message):
    with pytest.raises(ValueError, match=message):
        processor(**options)


@pytest.mark.parametrize(
    "options",
    [{"negative_names": "sky"}, {"negative_names": [3]}, {"separator": 3}, {"prefix": 3}, {"chunk_size": "2"}],
)
def test_prompt_options_of_other_types_are_refused(processor, options):
    (name,) = options
    in_one_line = rf"^{name}=.* must be .*(str|int).*\.$"
    with pytest.raises(TypeError, match=in_one_line):
        processor(text=["cat"], **options)
    with pytest.raises(TypeError, match=in_one_line):  # when they were saved with the processor
        make_processor(prompt_options=options)(text=["cat"])


def test_negative_names_without_text_are_refused(processor):
    """They were one more separator in every caption, which changes scores."""
    for empty in ("", "  "):
        with pytest.raises(ValueError, match="negative_names=.* has an empty name"):
            processor(text=["cat"], negative_names=["sky", empty])


@pytest.mark.parametrize("value", [-5, 0, 2, True, 2.5, "7"])
@pytest.mark.parametrize("text", ["two cats on a pink sofa", ["cat", "dog"]])
def test_captions_of_no_length_are_refused(processor, text, value):
    with pytest.raises((TypeError, ValueError), match="max_length="):
        processor(text=text, max_length=value)


def test_long_values_are_cut_in_messages(processor):
    long = "a " * 10_000
    for options in ({"phrases": ["a"]}, {"phrases": ["b" * 9999]}, {"phrases": long}, {"spans": [[long]]}):
        with pytest.raises((TypeError, ValueError)) as error:
            processor(text=long, **options)
        assert len(str(error.value)) < 600


def test_bytes_that_are_not_utf8_are_wrong_usage(capsys):
    for arguments in (["caf\udce9"], ["cat", "caf\udce9"], ["--caption", "a cat", "--phrases", "\udce9"]):
        assert main(["ground", str(PHOTO), *arguments, "--model", "none"]) == 2
        error = capsys.readouterr().err
        assert "\\udce9' is not valid Unicode" in error and len(error.splitlines()) == 1


# -- every script ----------------------------------------------------------------------------------


SCRIPTS = {
    "\ud55c\uad6d": 6,  # Hangul: BERT spells a syllable as its letters
    "\uac01": 3,
    "\u65e5\u672c\u72ac": 3,
    "\u30ab\u30e1\u30e9": 3,
    "\u05e9\u05dc\u05d5\u05dd": 4,
    "\u0643\u0644\u0628": 3,
    "\u0441\u043e\u0431\u0430\u043a\u0430": 5,
    "\u0939\u093f\u0928\u094d\u0926\u0940": 5,
    "caf\u00e9": 1,
    "cafe\u0301\u0302\u0303\u0304\u0305": 1,
    "\u0130stanbul": 1,
    "stra\u00dfe": 2,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_maps_all_of_its_tokens(bert_processor, no_warnings, name):
    alone = bert_processor.tokenizer(name, add_special_tokens=False)["input_ids"]
    assert len(alone) == SCRIPTS[name] and bert_processor.tokenizer.unk_token_id not in alone
    inputs = bert_processor(text=["cat", name, "dog"], return_tensors="pt")
    assert inputs["input_ids"][0][inputs["positive_map"][0, 1]].tolist() == alone
    inputs = bert_processor(text=f"a cat and {name}", phrases=[name], return_tensors="pt")
    assert inputs["input_ids"][0][inputs["positive_map"][0, 0]].tolist() == alone
    inputs = bert_processor(text=name + " cat", spans=[[0, len(name)]], return_tensors="pt")
    assert inputs["input_ids"][0][inputs["positive_map"][0, 0]].tolist() == alone


def test_emoji_are_told(bert_processor):
    with pytest.warns(UserWarning, match="cannot spell '\U0001f436'"):
        bert_processor(text=["cat", "\U0001f436"])


PLANES = (0, 0, 0, 0, 0, 1, 2, 3, 14, 15, 16)
COMMON = "aeinorst -'_./()&#\u00e9\u0301\u200d\ufe0f\u00a0\ud55c\u65e5\u05d0\u0627\U0001f436"


def random_name(generator: random.Random) -> str:
    """Up to 8 characters of any plane, combining marks and signs among them; no surrogates."""
    name = ""
    for _ in range(generator.randint(1, 8)):
        character = generator.choice(COMMON)
        if generator.random() < 0.6:
            character = chr(generator.choice(PLANES) * 0x10000 + generator.randrange(0x10000))
        if generator.random() < 0.2:
            character = chr(generator.choice((0xAC00, 0x4E00, 0x300, 0x590, 0x900, 0x1100)) + generator.randrange(80))
        name += character if unicodedata.category(character) != "Cs" else "x"
    return name


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_maps_hold_exactly_the_tokens_of_their_names(bert_processor, count):
    """Of every prompt each name's tokens, and no others, are those that it has alone; batches equal singles."""
    generator = random.Random(count)
    prompts = [["cat", *(random_name(generator) for _ in range(generator.randint(1, 5)))] for _ in range(count)]
    for start in range(0, count, 50):
        batch = prompts[start : start + 50]
        together = bert_processor(text=batch, return_tensors="pt")
        flat = [clean_name(name) for names in batch for name in names]
        alone = iter(bert_processor.tokenizer(flat, add_special_tokens=False)["input_ids"])
        for n, names in enumerate(batch):
            rows = together["positive_map"][n]
            for row, name in zip(rows, names):
                assert together["input_ids"][n][row].tolist() == next(alone), (ascii(name), names)
            assert not rows[len(names) :].any() and rows.sum(0).max() == 1
            single = bert_processor(text=names, return_tensors="pt")
            tokens = single["input_ids"].shape[1]
            assert together["input_ids"][n, :tokens].equal(single["input_ids"][0])
            assert not together["attention_mask"][n, tokens:].any()
            assert rows[: len(names), :tokens].equal(single["positive_map"][0])
