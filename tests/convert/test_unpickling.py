"""Malicious pickles: each would create a file if anything in it ran; each is refused, and the message names why."""

import builtins
import functools
import importlib
import io
import json
import os
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import Calls, pickled, with_pickle
from hostile import FULL, HUGE
from hypothesis import given, settings
from hypothesis import strategies as st

from glip_hf.conversion.checkpoint import CheckpointError, read_checkpoint
from glip_hf.conversion.unpickling import Inert, RestrictedUnpickler, UnsafePickleError


def attacks(marker: str) -> dict[str, tuple[object, str]]:
    """name -> (an object whose pickle would create `marker`, the global that must be named)."""
    command = f"touch {marker}"
    code = f"open({marker!r}, 'w').close()"
    opener = Calls(getattr, Calls(importlib.import_module, "os"), "system")
    return {
        "system": (Calls(os.system, command), "(posix|os|nt).system"),
        "eval": (Calls(builtins.eval, code), "builtins.eval"),
        "exec": (Calls(builtins.exec, code), "builtins.exec"),
        "open": (Calls(builtins.open, marker, "w"), "(io|_io|builtins).open"),
        "popen": (Calls(subprocess.Popen, ["touch", marker]), "subprocess.Popen"),
        "runpy": (Calls(runpy.run_path, marker), "runpy"),
        "nested": (Calls(functools.partial, opener, command), "functools.partial|builtins.getattr"),
        "getattr": (Calls(getattr, torch.nn.Linear, "__init__"), "builtins.getattr"),
        "hub": (Calls(torch.hub.load, "x/y", "z"), "torch.hub"),
        "load": (Calls(torch.load, marker, None), "torch.serialization.load"),
        "storage": (Calls(torch.storage._load_from_bytes, b"x"), "_load_from_bytes"),
        "unknown": (Calls(pytest.importorskip, "x"), "importorskip"),
    }


@pytest.mark.parametrize("where", ["root", "model", "value", "beside"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", attacks("x"))
def test_code_is_refused_and_nothing_runs(tmp_path, name, zipped, where):
    marker = tmp_path / "executed"
    attack, named = attacks(str(marker))[name]
    weights = {"a": torch.ones(1)}
    content = {
        "root": attack,
        "model": {"model": attack},
        "value": {"model": {**weights, "b": attack}},
        "beside": {"model": weights, "hook": [attack]},
    }[where]
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=named) as error:
        read_checkpoint(path)
    assert "refused" in str(error.value) and "nothing was executed" in str(error.value)
    assert not marker.exists()


def test_the_attacks_are_real(tmp_path):
    """The same pickle does create the file where it is loaded without care."""
    marker = tmp_path / "executed"
    pickle.loads(pickled(Calls(os.system, f"touch {marker}")))
    assert marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'touch {marker}'\ntR.",
        b"(S'touch {marker}'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch {marker}'\no.",
        b"(ios\nabort\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c{length}touch {marker}\x85R.",
        b"\x80\x02csubprocess\nPopen\n]S'touch'\naS'{marker}'\na\x85\x81.",
        b'c__builtin__\neval\n(S\'open("{marker}","w")\'\ntR.',
        b"csomewhere\nUnknown\n(S'x'\ntR.",
        b"(isomewhere\nUnknown\n.",
        b"(csomewhere\nUnknown\no.",
    ],
)
def test_hand_written_opcodes(tmp_path, data):
    marker = tmp_path / "executed"
    text = str(marker).encode()
    data = data.replace(b"{length}", bytes([len(b"touch " + text)])).replace(b"{marker}", text)
    with pytest.raises(CheckpointError, match="refused"):
        read_checkpoint(with_pickle(tmp_path / "x.pth", data))
    assert not marker.exists()


def load(data: bytes):
    return RestrictedUnpickler(io.BytesIO(data)).load()


STORAGE, TEXT = b"X\x07\x00\x00\x00storage", b"X\x01\x00\x00\x00x"


@pytest.mark.parametrize(
    "data",
    [
        HUGE + b"Q",
        b"(" + HUGE + b"NNNNtQ",
        b"(" + STORAGE + b"N" + HUGE + b"NK\x01tQ",
        b"(" + STORAGE + b"N" + TEXT + b"N" + HUGE + b"tQ",
        b"c__builtin__\nbytearray\n" + HUGE + b"\x85R",
        b"c_codecs\nencode\n" + TEXT + HUGE + b"\x86R",
        b"ctorch._utils\n_rebuild_tensor\n(" + 4 * HUGE + b"tR",
        HUGE + b")\x81",
    ],
    ids=["pid", "kind", "key", "size", "collection", "codec", "tensor", "class"],
)
def test_messages_do_not_format_huge_objects(tmp_path, data):
    data = b"\x80\x02" + data + b"."
    header = [pickled(value) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {})]
    huge = b"\x80\x02" + HUGE + b"."
    paths = [with_pickle(tmp_path / "zip.pth", data)]
    for position in range(5):  # in the legacy format, instead of the object and of each pickle around it
        path = tmp_path / f"legacy{position}.pth"
        path.write_bytes(b"".join(header[:position]) + (data if position == 3 else huge))
        paths.append(path)
    for path in paths:
        with pytest.raises(CheckpointError, match="damaged, cut off or not a PyTorch checkpoint") as error:
            read_checkpoint(path)
        assert len(str(error.value)) < 1000


def test_persistent_ids_of_modules_are_refused(tmp_path):
    """The legacy format may name a class with its source, which `torch.load` would compare and write to a file."""
    header = b"".join(pickled(value) for value in (0x1950A86A20F9469CFC6C, 1001, {}))
    module = b"\x80\x02(X\x06\x00\x00\x00modulecm\nThing\n" + 2 * TEXT + b"tQ."
    (tmp_path / "x.pth").write_bytes(header + module)
    with pytest.raises(CheckpointError, match="unknown persistent id"):
        read_checkpoint(tmp_path / "x.pth")


def test_modules_are_never_imported():
    assert "antigravity" not in sys.modules
    value = load(b"\x80\x02cantigravity\nThing\n)\x81.")
    assert isinstance(value, Inert) and "antigravity" not in sys.modules
    assert (type(value).__module__, type(value).__qualname__) == ("antigravity", "Thing")


def test_codecs_are_limited():
    assert load(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00xX\x06\x00\x00\x00latin1\x86R.") == b"x"
    with pytest.raises(UnsafePickleError, match="rot13"):
        load(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00xX\x05\x00\x00\x00rot13\x86R.")


def test_dotted_names_reach_nothing():
    # STACK_GLOBAL may carry a path: "torch", "hub.load"
    with pytest.raises(UnsafePickleError, match=r"torch\.hub\.load"):
        load(b"\x80\x04\x8c\x05torch\x8c\x08hub.load\x93)R.")


def test_inert_objects_keep_contents_and_cannot_be_set():
    data = b"\x80\x02cm\nThing\n)\x81q\x00(K\x01K\x02u}X\x01\x00\x00\x00aK\x03sb."
    value = load(data)
    assert value.items == {1: 2} and value.state == {"a": 3}
    # BUILD with slot state asks for setattr: on a stand-in class, and on one of our functions
    slots = b"N}X\x04\x00\x00\x00evilK\x01s\x86b."
    for target in (b"cm\nThing\n", b"ccollections\nOrderedDict\n"):
        with pytest.raises((UnsafePickleError, TypeError)):
            load(b"\x80\x02" + target + slots)


def test_allocations_are_bounded(tmp_path):
    with pytest.raises(pickle.UnpicklingError, match="bytearray"):
        load(b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.")
    # a stride of 0 would blow one number up to terabytes
    tensor = torch.zeros(1).expand(2, 1 << 39)
    from checkpoints import foreign_class, forget_module

    node = foreign_class("yacs.config", "CfgNode")()
    torch.save({"model": {"a": tensor}, "cfg": node}, tmp_path / "x.pth")
    forget_module("yacs")
    with pytest.raises(CheckpointError, match="exceeds its storage"):
        read_checkpoint(tmp_path / "x.pth")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_random_bytes_never_do_more_than_fail(data):
    try:
        load(b"\x80\x02" + data)
    except Exception as error:
        assert not isinstance(error, (SystemExit, KeyboardInterrupt))


@pytest.mark.parametrize("name", [name for name in FULL if "within the limit" not in name and "deep" not in name])
def test_time_and_memory_are_bounded(tmp_path, name):
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(with_pickle(tmp_path / "x.pth", b"\x80\x02" + FULL[name] + b"."))
    assert len(str(error.value)) < 1000


def test_pickles_change_containers_only():
    """A list stands for what is no container of ours, such as a tensor."""
    for opcodes in (b"]K\x00K\x01s", b"](K\x00K\x01u", b"]}b", b"c__builtin__\nlist\n}b", b"](K\x01\x90"):
        with pytest.raises(UnsafePickleError, match="wants to change an object of class"):
            load(b"\x80\x02" + opcodes + b".")


@pytest.mark.slow
def test_600_hostile_files(tmp_path):
    """Read by another process as `glip info` does: nothing runs, no file takes 5 s of processor time or 2 GB."""
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), str(here.parents[1] / "src")])
    result = subprocess.run(
        [sys.executable, str(here / "hostile.py"), str(tmp_path), "600"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0, (lines[-1], result.stderr[-2000:])
    read = [line for line in lines if "seconds" in line]
    assert len(read) >= 600
    assert max(line["seconds"] for line in read) < 5 and read[-1]["megabytes"] < 2000
    assert all(line["error"] is None or len(line["error"]) < 1000 for line in read)
    assert not (tmp_path / "executed").exists()
