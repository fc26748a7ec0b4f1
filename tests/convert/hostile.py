# Copyright 2026 The glip_hf authors. MIT licence.
"""Hostile weights: files that would run code, hang or fill the memory of a reader that trusts them, and damaged ones.

    python hostile.py DIRECTORY COUNT    # writes COUNT files and reads each as `glip info` does

prints one JSON line a file, {"name", "error", "seconds" of processor time, "megabytes" at the peak so far}, and its
name before it, so that a caller with a time limit sees which one hangs.
"""

import io
import json
import os
import pickle
import random
import re
import struct
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from checkpoints import Calls, pickled, with_pickle
from safetensors.torch import save

HUGE = b"N" + 200 * b"2\x86"
"""Opcodes of a pair that holds the same pair twice, and so on: 400 bytes, of which the text has 2^200 characters."""
MAGIC = [pickled(value) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
LONG = b"X" + struct.pack("<I", 1_000_000) + b"x" * 1_000_000
COLLISIONS = b"".join(
    b"\x8a\x0a" + ((1 << 61) * k - k).to_bytes(10, "little", signed=True) + b"N" for k in range(1, 90_000)
)
FULL = {
    "hash of a pair of pairs": b"}" + HUGE + b"Ns",
    "hash of many": b"}(" + HUGE + b"Nu",
    "hash in a dict": b"(" + HUGE + b"Nd",
    "hash in a set": b"\x8f(" + HUGE + b"\x90",
    "hash in a frozenset": b"(" + HUGE + b"\x91",
    "hash in a called set": b"c__builtin__\nset\n(" + HUGE + b"lp1\n\x85R",
    "hash in an OrderedDict": b"ccollections\nOrderedDict\n](" + HUGE + b"N\x86e\x85R",
    "hash in an unknown object": b"cm\nT\n)\x81(" + HUGE + b"Nu",
    "hash of a deep tuple": b"}" + b"N" + 500_000 * b"\x85" + b"Ns",
    "keys of one hash": b"}(" + COLLISIONS + b"u",
    "one-byte objects": 3_000_000 * b"]",
    "one-byte objects within the limit": 1_900_000 * b"]",
    "dictionaries within the limit": 1_900_000 * b"}",
    "sets within the limit": 1_900_000 * b"\x8f",
    "marks within the limit": 1_900_000 * b"(",
    "bytearray of a length": b"\x96" + struct.pack("<Q", 1 << 34),
    "called bytearray of a length": b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R",
    "bytes of a length": b"\x8e" + struct.pack("<Q", 1 << 40),
    "text of a length": b"\x8d" + struct.pack("<Q", 1 << 40),
    "frame of a length": b"\x95" + struct.pack("<Q", 1 << 40),
    "copies of a text": LONG + b"q\x01" + 100_000 * b"c_codecs\nencode\nh\x01\x85R",
    "copies of a list": b"](" + 400_000 * b"N" + b"eq\x01" + 100_000 * b"c__builtin__\nlist\nh\x01\x85R",
    "copies of a tuple": b"(" + 400_000 * b"N" + b"tq\x010" + 200_000 * b"cm\nT\nh\x01\x81",
    "copies by INST": b"](" + 400_000 * b"N" + b"eq\x01" + 100_000 * b"(h\x01i__builtin__\nlist\n",
    "copies by a tensor's rebuilding": LONG
    + b"q\x01"
    + 30_000 * b"ctorch._tensor\n_rebuild_from_type_v2\n(c__builtin__\ntuple\nNh\x01\x85NtR",
    "many dimensions": b"("
    + 300_000 * b"K\x01"
    + b"tq\x01"
    + 50_000 * b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00h\x01h\x01tR",
    "long name": b"c" + b"m" * 1_000_000 + b"\n" + b"n" * 1_000_000 + b"\n)R",
    "long key": b"}" + LONG + b"Ns",
    "long text called": LONG + b"q\x01cmmengine\nrun\nh\x01\x85R)R",
    "long text beyond the file": b"X" + struct.pack("<I", (1 << 32) - 1) + b"x",
    "long texts in a set": b"c__builtin__\nset\n](" + LONG + b"e\x85R",
    "long number": b"L" + b"9" * 1_000_000 + b"L\n",
    "deep list": 1_900_000 * b"(" + b"l",
    "deep tuple": b"N" + 1_900_000 * b"\x85",
    "memo of a large index": b"Nr\xff\xff\xff\xff",
    "state of a class": b"cm\nT\nN}X\x04\x00\x00\x00evilK\x01s\x86b",
    "persistent id of pairs": HUGE + b"Q",
    "storage beyond the file": b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    + b"\x8a\x06\x00\x00\x00\x00\x00\x01tQ",
}
"""Name -> opcodes of an object."""
PREFIXES = "module." * 100_000


def contents(marker: str) -> Iterator[tuple[str, object]]:
    """Name and object of pickles that call, and of state dicts that only look like ones."""
    command = f"touch {marker}"
    calls = {
        "os.system": Calls(os.system, command),
        "eval": Calls(eval, f"open({marker!r}, 'w')"),
        "exec": Calls(exec, f"open({marker!r}, 'w')"),
        "open": Calls(open, marker, "w"),
        "getattr": Calls(getattr, torch.nn.Linear, "__init__"),
        "map": Calls(map, os.system, [command]),
        "load": Calls(torch.load, marker),
        "hub": Calls(torch.hub.load, "a/b", "c"),
        "script": Calls(torch.jit.load, marker),
        "from_bytes": Calls(torch.storage._load_from_bytes, b""),
        "set_default": Calls(torch.set_num_threads, 1),
        "print": Calls(print, "executed"),
        "type": Calls(type, "X", (), {}),
        "dict of calls": Calls(dict, Calls(os.system, command)),
        "pickle": Calls(pickle.loads, pickled(Calls(os.system, command))),
    }
    one = torch.ones(1)
    for name, call in calls.items():
        yield name, call
        yield f"{name} as a value", {"model": {"a": one, "b": call}}
        yield f"{name} beside", {"model": {"a": one}, "hook": [call]}
        yield f"{name} as a key", {"model": {"a": one}, "dict": {("k",): call}}
    swin, bert = (
        "backbone.body.patch_embed.proj.weight",
        "language_backbone.body.model.embeddings.word_embeddings.weight",
    )
    for shape in ((), (0,), (1,), (0, 1 << 60), (3, 0, 4, 4), (1, 1, 1, 1, 1)):
        keys = (swin, bert, "backbone.fpn.fpn_inner2.weight", "backbone.body.layers.0.blocks.0.norm1.weight")
        yield f"shapes {shape}", {"model": {key: torch.ones(shape) for key in keys}}
    yield "many prefixes", {"model": {PREFIXES + "a": one}}
    yield "many tensors", {"model": {f"layer.{n}": one for n in range(18_000)}}
    yield "a stride of zero", {"model": {"a": one.expand(1 << 20, 1 << 20)}}
    yield "control characters", {"model": {"\x1b[2J\x07" + "x" * 5000: one, "b": 1}}
    yield "no tensors", {"model": {str(n): n for n in range(20_000)}}


def archive(path: Path, entries: dict[str, bytes], compressed: bool) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as file:
        for name, data in entries.items():
            file.writestr(f"archive/{name}", data)


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, cut out, doubled, or the end cut off."""
    made = bytearray(data)
    for _ in range(draw.choice((1, 3, 30))):
        at = draw.randrange(len(made))
        kind = draw.randrange(5)
        if kind < 3:
            made[at] = draw.randrange(256)
        elif kind == 3:
            del made[at : at + draw.randrange(1, 40)]
        else:
            made[at:at] = made[at : at + draw.randrange(1, 40)]
        if len(made) < 20:
            break
    return bytes(made[: draw.randrange(len(made))] if draw.random() < 0.1 else made)


OPCODES = [bytes([code]) for code in b"()0123]}lNdtabceijoqrsux\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x93\x94RQPKJMX"]
NAMES = [
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch._tensor\n_rebuild_from_type_v2\n",
    b"ctorch\nFloatStorage\n",
    b"ccopyreg\n_reconstructor\n",
    b"c__builtin__\nset\n",
    b"c__builtin__\nlist\n",
    b"c_codecs\nencode\n",
    b"cm\nT\n",
    b"cos\nsystem\n",
    b"h\x00",
    b"q\x00",
    b"K\x01",
    b"X\x01\x00\x00\x00a",
]


def program(draw: random.Random) -> bytes:
    """Opcodes by chance."""
    count = draw.choice((5, 20, 200))
    return b"\x80\x02" + b"".join(draw.choice(NAMES if draw.random() < 0.5 else OPCODES) for _ in range(count)) + b"."


def write_files(directory: Path, count: int, marker: str, seed: int = 0) -> Iterator[Path]:
    """Hostile files, `count` of them; those with names first, then mutations and programs in turn."""
    draw = random.Random(seed)
    number = 0

    def path(name: str) -> Path:
        nonlocal number
        number += 1
        return directory / f"{number:04} {name.replace('/', ' ')}.pth"

    for name, opcodes in FULL.items():
        data = b"\x80\x02" + opcodes + b"."
        yield with_pickle(path(name), data)
        (legacy := path(f"{name} legacy")).write_bytes(b"".join([*MAGIC, data, pickled([])]))
        yield legacy
    for name, content in contents(marker):
        torch.save(content, zipped := path(name))
        yield zipped
        torch.save(content, legacy := path(f"{name} legacy"), _use_new_zipfile_serialization=False)
        yield legacy
    zeros = b"\0" * (1 << 27)
    for entries in ({"data.pkl": zeros, "version": b"3"}, {"data.pkl": pickled({}), "version": zeros}):
        for compressed in (True, False):
            archive(made := path("zip bomb"), entries, compressed)
            yield made
    archive(made := path("many entries"), {f"data/{n}": b"" for n in range(5_000)} | {"data.pkl": pickled({})}, False)
    yield made
    header = json.dumps(
        {str(n): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(40_000)}
    ).encode()
    for claimed in (len(header), 1 << 31, 1 << 40):
        (made := path("safetensors header")).write_bytes(struct.pack("<Q", claimed) + header)
        yield made
    state = {"a": torch.arange(64.0), "b": torch.ones(3, 4)}
    buffers = [save(state)]
    for zipped in (True, False):
        buffer = io.BytesIO()
        torch.save({"model": state, "epoch": 3}, buffer, _use_new_zipfile_serialization=zipped)
        buffers.append(buffer.getvalue())
    while number < count:
        (made := path("mutated")).write_bytes(mutated(draw.choice(buffers), draw))
        yield made
        yield with_pickle(path("program"), program(draw))


def main(directory: str, count: str) -> None:
    from glip_hf.inspection import describe

    marker = Path(directory) / "executed"
    for path in write_files(Path(directory), int(count), str(marker)):
        print(json.dumps({"name": path.name}), flush=True)
        error = None
        start = time.process_time()
        try:
            describe(str(path))
        except ValueError as refusal:  # the only kind that the command line shows as a line
            error = str(refusal)
        # Not `ru_maxrss`: it begins with that of the process that started this one.
        peak = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1]) >> 10
        seconds = time.process_time() - start
        print(json.dumps({"name": path.name, "error": error, "seconds": seconds, "megabytes": peak}), flush=True)
        path.unlink()
        assert not marker.exists(), path.name


if __name__ == "__main__":
    main(*sys.argv[1:])
