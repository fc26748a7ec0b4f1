"""Reading JSON element by element gives what `json.load` gives, at any size of the window."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glip_hf.data import json_stream
from glip_hf.data.json_stream import UnreadableJson, stream_json

CONTENT = {
    "info": {"year": 2026, "text": 'a "quoted" ] } text, \\ é 東'},
    "images": [{"id": 1}, {"id": 2, "x": [1, 2, {"y": None}]}],
    "empty": [],
    "numbers": [1, -2.5, 1e3, 12345],
    "flag": True,
    "last": 12,
}


def collected(path):
    members = {}
    for key, value in stream_json(path):
        members.setdefault(key, []).append(value)
    return members


@pytest.mark.parametrize("window", [1, 2, 3, 7, 50, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_equals_json_load(tmp_path, monkeypatch, window, indent):
    monkeypatch.setattr(json_stream, "CHUNK_CHARACTERS", window)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(CONTENT, indent=indent, ensure_ascii=False), encoding="utf-8")
    expected = {k: v if isinstance(v, list) else [v] for k, v in CONTENT.items() if v != []}
    assert collected(path) == expected


@given(
    st.lists(st.one_of(st.integers(), st.floats(allow_nan=False), st.text(), st.none()), max_size=8), st.integers(1, 9)
)
def test_any_values(tmp_path_factory, values, window):
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps({"a": values}))
    old, json_stream.CHUNK_CHARACTERS = json_stream.CHUNK_CHARACTERS, window
    try:
        assert collected(path) == ({"a": values} if values else {})
    finally:
        json_stream.CHUNK_CHARACTERS = old


def test_nan_and_byte_order_mark(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": [NaN, Infinity]}')
    nan, infinity = collected(path)["a"]
    assert math.isnan(nan) and infinity == math.inf


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ("", 0),
        ("[1, 2]", 0),
        ('{"a": [{"id": 1}, {"id": 2', 1),
        ('{"a": [{"id": 1}, {"id": oops}, {"id": 3}' + " " * 100, 1),
        ('{"a": [1, 2] "b": 3}', 2),
        ('{"a": 1', 1),
        ('{"a" 1}', 0),
        ('{"a": 1}\n{"a": 2}', 1),
        ('{"a": ' + "[" * 100_000, 0),
        ('{"a": [5, ' + "1" * 5000 + "]}", 1),
    ],
)
def test_broken_files_name_place_and_keep_what_came_before(tmp_path, text, before):
    path = tmp_path / "broken.json"
    path.write_text(text)
    got = []
    with pytest.raises(UnreadableJson, match=r"broken\.json: unreadable JSON at character \d+"):
        for item in stream_json(path):
            got.append(item)
    assert len(got) == before


def test_not_utf8(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": ["\xff\xfe"]}')
    with pytest.raises(UnreadableJson, match="UTF-8"):
        list(stream_json(path))
