# Copyright 2026 The glip_hf authors. MIT licence.
"""Damaged and malicious images and archives: read or refused by name, in bounded time and memory."""

import gzip
import io
import json
import os
import random
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.data.original_formats import encoded_image

WORKER = Path(__file__).with_name("hostile_worker.py")
KINDS = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "TGA", "ICO", "JPEG2000")


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content with a few bytes flipped, cut, repeated, or overwritten by extreme numbers."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 12))):
        at = rng.randrange(min(len(data), rng.choice((64, 10**9))))
        how = rng.randrange(4)
        if how == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\0\0"))
        elif how == 2:
            del data[max(at, 8) :]
        else:
            data[at:at] = data[at : at + rng.randrange(1, 4096)]
    return bytes(data)


def png(width: int, height: int, pixels: bytes, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG that claims a size, and its compressed pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    packer = zlib.compressobj(9)
    parts = [packer.compress(bytes(min(count - done, 1 << 20))) for done in range(0, count, 1 << 20)]
    return b"".join(parts) + packer.flush()


def bombs() -> dict[str, bytes]:
    """Small files that stand for much."""
    made = {
        "bomb.png": png(30_000, 30_000, zeros(1 << 20)),  # claims 900 megapixels
        "claims-all.png": png(2**31 - 1, 2**31 - 1, b""),
        "long.png": png(170_000_000, 1, zeros(170_000_001)),
        "allowed-16.png": png(13_000, 13_000, zeros(13_000 * 26_001), depth=16),  # 169 megapixels of 16 bits
        "text.png": png(4, 4, zeros(20))[:-12] + struct.pack(">I", 2**31 - 1) + b"zTXt",
        "program.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\n{} loop\n",
        "empty.png": b"",
        "text.jpg": b"hello" * 100,
        "self.svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    }
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, content in (("a.jpg", encoded_image(8, 8)), ("a.txt", b"a cat"), ("a.json", b"[" * 100_000)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    whole = plain.getvalue()
    large = tarfile.TarInfo("b.jpg")
    large.size = 3 << 30
    pax = tarfile.TarInfo("b.jpg")
    pax.type, pax.size = tarfile.XHDTYPE, 3 << 30
    link = tarfile.TarInfo("a.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    made |= {
        "whole.tar": whole,
        "claims.tar": large.tobuf() + bytes(1024),
        "pax.tar": pax.tobuf() + bytes(4096),
        "link.tar": link.tobuf() + bytes(1024),
        "zip.tar": gzip.compress(whole),
        "bomb.tar": gzip.compress(large.tobuf()) + gzip.compress(bytes(64 << 20)) * 64,  # 4 GB
        "pax-bomb.tar": gzip.compress(pax.tobuf()) + gzip.compress(bytes(64 << 20)) * 64,
    }
    return made


@pytest.mark.slow
def test_hostile_images_and_archives(tmp_path):
    rng, number = random.Random(7), 0
    seeds = {}
    for kind in KINDS:
        buffer = io.BytesIO()
        noise = Image.frombytes("RGB", (64, 48), rng.randbytes(64 * 48 * 3))
        noise.save(buffer, kind)
        seeds[kind] = buffer.getvalue()
    hostile = bombs()
    for kind, content in seeds.items():
        for _ in range(30):
            number += 1
            hostile[f"{number:03d}.{kind.lower()}"] = mutated(content, rng)
    for _ in range(20):
        number += 1
        hostile[f"{number:03d}.tar"] = mutated(hostile["whole.tar"], rng)
    for name, content in hostile.items():
        (tmp_path / name).write_bytes(content)
    assert len(hostile) > 330

    def read(folder):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(WORKER), str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    found = read(tmp_path)
    assert {one["file"] for one in found} == set(hostile)
    assert [one for one in found if one["outcome"].startswith("FAILED")] == []
    for number, one in enumerate([one for one in found if one["seconds"] > 5]):
        # Again by itself: other processes that use the memory can double the CPU time of a large image.
        (again := tmp_path / f"again-{number}").mkdir()
        (again / one["file"]).write_bytes(hostile[one["file"]])
        assert min(read(again)[0]["seconds"] for _ in range(3)) <= 5, one
    assert max(one["peak"] for one in found) < 2e9, max(found, key=lambda one: one["peak"])
    by_name = {one["file"]: one["outcome"] for one in found}
    assert by_name["whole.tar"] == by_name["zip.tar"] == "1 pairs"
    for name in ("bomb.png", "claims-all.png", "long.png", "program.eps", "bomb.tar", "pax-bomb.tar", "claims.tar"):
        assert by_name[name].startswith("refused"), (name, by_name[name])
