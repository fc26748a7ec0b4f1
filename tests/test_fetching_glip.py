# Copyright 2026 The glip_hf authors. MIT licence.
"""Limits on what is fetched and decoded: size, time, redirects, addresses, pixels."""

import http.server
import io
import socket
import threading
import time

import pytest
from PIL import Image

from glip_hf.fetching_glip import _addresses, fetch, setting
from glip_hf.image_processing_pil_glip import UnreadableImage, load_image, open_image


class Handler(http.server.BaseHTTPRequestHandler):
    """What hostile and ordinary servers do, by path."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        path = self.path.removeprefix("http://8.8.8.8")  # what a proxy is asked for
        kind, _, rest = path[1:].partition("/")
        if kind == "slow":  # a byte now and then, in the headers (rest) or in the body
            self.wfile.write(b"HTTP/1.0 200 OK\r\n" + (b"X-Slow: " if rest else b"\r\n"))
            while not self.server.done.wait(0.05):
                self.wfile.write(b"x")
                self.wfile.flush()
            return
        if kind == "redirect":
            self.send_response(302)
            self.send_header(
                "Location", rest if "://" in rest else f"/redirect/{int(rest) - 1}" if rest != "0" else "/ok"
            )
            self.end_headers()
            return
        self.send_response(200 if kind in ("ok", "large", "endless") else 404)
        content = b"image" if kind == "ok" else b"x" * 20_000
        if kind != "endless":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        for _ in range(10_000 if kind == "endless" else 1):
            self.wfile.write(content)


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.done = True, threading.Event()
        server.handle_error = lambda *_: None  # clients that hang up are what is tested
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.done.set()
        server.shutdown()


@pytest.fixture
def private(monkeypatch):
    monkeypatch.setenv("GLIP_URL_PRIVATE", "1")


def test_an_ordinary_download(server, private):
    assert fetch(f"{server}/ok") == fetch(f"{server}/redirect/3") == b"image"


@pytest.mark.parametrize("kind", ["large", "endless"])
def test_size(server, private, monkeypatch, kind):
    monkeypatch.setenv("GLIP_URL_MAX_MB", "0.01")
    with pytest.raises(ValueError, match="larger than 0.01 MB; the environment variable GLIP_URL_MAX_MB allows more"):
        fetch(f"{server}/{kind}")


@pytest.mark.parametrize("part", ["", "headers"])
def test_time(server, private, part):
    begin = time.monotonic()
    with pytest.raises(ValueError, match="longer than 0.3 s; the environment variable GLIP_URL_TIMEOUT allows more"):
        fetch(f"{server}/slow/{part}", timeout=0.3)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("target", ["99", "ftp://127.0.0.1/a", "file:///etc/hostname"])
def test_redirects(server, private, target):
    with pytest.raises(OSError, match="(?i)redirect|unknown url type"):
        fetch(f"{server}/redirect/{target}")


def test_private_addresses(server, monkeypatch):
    for url in (f"{server}/ok", server.replace("127.0.0.1", "localhost"), server.replace("127.0.0.1", "2130706433")):
        with pytest.raises(ValueError, match="is (127.0.0.1|::1), an address of this machine .* GLIP_URL_PRIVATE=1"):
            fetch(url)
    monkeypatch.setenv("http_proxy", server)  # a proxy may be private, what it fetches may not
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(ValueError, match="is 10.1.2.3"):
        fetch("http://10.1.2.3/ok")
    assert fetch("http://8.8.8.8/ok") == b"image"


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "::1", "fe80::1",
     "fc00::1", "::ffff:127.0.0.1", "64:ff9b::a9fe:a9fe"],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    with pytest.raises(ValueError, match="GLIP_URL_PRIVATE=1"):
        _addresses(address, 80)


def test_public_addresses(monkeypatch):
    assert _addresses("8.8.8.8", 80) == [("8.8.8.8", 80)]
    mixed = [(socket.AF_INET, 1, 6, "", (place, 80)) for place in ("8.8.8.8", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: mixed)
    with pytest.raises(ValueError, match="two-faced.example is 127.0.0.1"):
        _addresses("two-faced.example", 80)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "many"])
def test_settings_are_positive_numbers(monkeypatch, value):
    monkeypatch.setenv("GLIP_URL_TIMEOUT", value)
    with pytest.raises(ValueError, match=f"GLIP_URL_TIMEOUT='{value}' is not a positive number"):
        setting("GLIP_URL_TIMEOUT", 60)


def png(width, height, mode="1"):
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_megapixels(monkeypatch, tmp_path):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # the setting changes it
    (tmp_path / "large.png").write_bytes(png(20_000, 9_500))
    with pytest.raises(UnreadableImage, match="large.png.* 190 megapixels, more than the 179 .*GLIP_MAX_MEGAPIXELS"):
        load_image(tmp_path / "large.png")
    monkeypatch.setenv("GLIP_MAX_MEGAPIXELS", "200")
    with pytest.warns(Image.DecompressionBombWarning):
        assert open_image(tmp_path / "large.png").size == (20_000, 9_500)
    monkeypatch.setenv("GLIP_MAX_MEGAPIXELS", "0.001")
    with pytest.raises(UnreadableImage, match="0.002|allowed"):
        open_image(io.BytesIO(png(50, 50)), "small")


def test_postscript_is_not_run(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    with pytest.raises(UnreadableImage, match="a.eps.*PostScript"):
        load_image(tmp_path / "a.eps")
