# Copyright 2026 The glip_hf authors. MIT licence.
"""The page of `glip demo`: what it shows, and that it works in a browser at a desktop's and a phone's size.

The browser tests need gradio, playwright and Debian's chromium: `make tools`. GLIP_SCREENSHOTS=DIR keeps what they saw.
"""

import csv
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model

from glip_hf.cli import main
from glip_hf.demo import DEMO_CAPTION, DEMO_IMAGE, DEMO_NAMES, demo_model, demo_processor
from glip_hf.demo_page import HEADERS, LOWEST, Found, annotations, build_page, describe, draw_scene, find, rows
from glip_hf.inference import GroundingEngine, GroundingOptions, Request
from glip_hf.visualize import draw_detections, label_color

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = shutil.which("chromium")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
needs_gradio = pytest.mark.skipif("gradio" in MISSING, reason="gradio is not installed: `make tools` tests the page")
needs_browser = pytest.mark.skipif(
    bool(MISSING) or CHROMIUM is None,
    reason="needs gradio, playwright and chromium (apt-get install chromium): `make tools` tests the page",
)


# -- what is shown ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> GroundingEngine:
    return GroundingEngine(demo_model(), demo_processor(), GroundingOptions(threshold=LOWEST, workers=1))


def test_a_threshold_chooses_what_the_engine_finds_with_it(engine) -> None:
    found = find(engine, str(DEMO_IMAGE), ", ".join(DEMO_NAMES))
    strict = GroundingEngine(engine.model, engine.processor, GroundingOptions(threshold=0.4, workers=1))
    (expected,) = strict.ground([Request(DEMO_IMAGE, list(DEMO_NAMES))])
    shown, expected = found.above(0.4), expected.detections[0]
    assert shown.keys() == expected.keys() and len(expected["boxes"]) == 4 < len(found.detections["boxes"])
    for name, values in expected.items():
        assert torch.equal(shown[name], values) if torch.is_tensor(values) else shown[name] == values
    assert sorted(row[0] for row in rows(shown)) == ["fish", "green star", "yellow cross", "yellow cross"]
    assert rows(shown)[0][2:] == [round(v, 1) for v in expected["boxes"][0].tolist()]


@pytest.mark.parametrize(
    ("text", "reading", "looked_for"),
    [
        ("fish. star", "automatic", ["fish", "star"]),
        (DEMO_CAPTION, "automatic", ["the dotted yellow cross", "a fish"]),
        (DEMO_CAPTION, "class names", [DEMO_CAPTION]),
        ("a fish, a star", "caption", ["a fish", "a star"]),
        ("fish", "caption", ["fish"]),
    ],
)
def test_texts_are_read_as_asked(engine, text, reading, looked_for) -> None:
    assert find(engine, str(DEMO_IMAGE), text, reading).looked_for == looked_for


def test_16_bit_images_are_shown_as_the_model_sees_them(engine, tmp_path) -> None:
    grey = np.array(Image.open(DEMO_IMAGE).convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")  # PIL's own conversion makes it white
    shown = find(engine, str(tmp_path / "deep.png"), "fish").image
    assert shown.mode == "RGB" and np.array_equal(np.array(shown)[..., 0], grey)


def test_large_images_are_shown_smaller_and_upright_with_boxes_in_pixels_of_the_image(engine, tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    with Image.open(DEMO_IMAGE) as scene:
        turned = scene.convert("RGB").resize((1920, 1920)).transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    found = find(engine, str(tmp_path / "turned.jpg"), "fish")
    assert found.image.size == (1280, 1280) and found.size == (1920, 1920) and found.file_name == "turned.jpg"
    small = find(engine, str(DEMO_IMAGE), "fish")
    torch.testing.assert_close(found.above(0.4)["boxes"], small.above(0.4)["boxes"] * 4, atol=8, rtol=0)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        (None, "fish", "no image yet"),
        (str(DEMO_IMAGE), " ", "nothing to look for"),
        (str(DEMO_IMAGE), None, "nothing to look for"),
        (__file__, "fish", "image"),
        (str(DEMO_IMAGE), "\ud800", "Unicode"),
    ],
)
def test_errors_say_what_is_wrong(engine, path, text, message) -> None:
    with pytest.raises((OSError, ValueError), match=message):
        find(engine, path, text)


def test_an_error_names_the_file_not_the_folder_of_the_server(engine, tmp_path) -> None:
    (tmp_path / "notes.jpg").write_text("hello", encoding="utf-8")
    with pytest.raises((OSError, ValueError), match=r"'notes\.jpg'") as raised:
        find(engine, str(tmp_path / "notes.jpg"), "fish")
    assert str(tmp_path) not in str(raised.value)


def test_what_the_command_line_notes_is_said_below_the_image(engine) -> None:
    notes = describe(find(engine, str(DEMO_IMAGE), "fish, fish, \N{FISH}"), 0.4)
    assert "read the same" in notes and "cannot spell" in notes


def test_a_long_text_is_cut_in_the_summary(engine) -> None:
    found = find(engine, str(DEMO_IMAGE), "word " * 1000)
    assert len(describe(found, 0.4)) < 800
    several = ", ".join(f"thing {number}" for number in range(30))
    assert "thing 19 and 10 more." in describe(find(engine, str(DEMO_IMAGE), several), 0.4)


def detections(boxes: list[list[float]], labels: list[int], names: list[str]) -> dict[str, Any]:
    return {
        "scores": torch.linspace(0.9, 0.5, len(boxes)),
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "text_labels": names,
    }


def test_each_name_is_one_mask_of_its_boxes() -> None:
    boxes = [[10, 10, 50, 40], [60.4, 5, 99, 30], [-3, 20, 20, 90]]
    masks, colors = annotations((100, 80), detections(boxes, [1, 0, 1], ["cat", "dog", "cat"]))
    assert [title for _, title in masks] == ["cat \N{MULTIPLICATION SIGN} 2", "dog"]
    assert list(colors.values()) == ["#{:02x}{:02x}{:02x}".format(*label_color(label)) for label in (1, 0)]
    cat, dog = (mask for mask, _ in masks)
    assert cat.shape == dog.shape == (80, 100)
    assert cat[10, 10] == cat[40, 50] == cat[11, 30] == 1 and cat[25, 30] == 0.15  # outline of 2 pixels, inside
    assert cat[9, 10] == cat[41, 30] == cat[20, 51] == 0
    assert cat[50, 0] == 1 and cat[79, 10] == 1  # clipped at the image's edge
    assert dog[5, 60] == 1 and dog[15, 80] == 0.15 and dog[:, :60].max() == 0
    assert annotations((100, 80), detections([], [], [])) == ([], {})


def test_the_summary_is_escaped_and_says_what_to_do() -> None:
    image = Image.new("RGB", (100, 80))
    found = Found("a.png", image.size, image, detections([[1, 2, 3, 4]], [0], ["<b>cat</b>"]), ["<b>cat</b>"], 0.12)
    assert describe(found, 0.5) == "<p><b>1 found</b> in 0.1 s, looking for: &lt;b&gt;cat&lt;/b&gt;.</p>"
    assert "The best is &lt;b&gt;cat&lt;/b&gt; with a score of 0.90: lower the threshold" in describe(found, 0.95)
    nothing = Found("a.png", image.size, image, detections([], [], []), ["cat"] * 30, 0.12)
    assert (
        describe(nothing, 0.5) == f"<p><b>0 found</b> in 0.1 s, looking for: {', '.join(['cat'] * 20)} and 10 more.</p>"
    )


def test_a_fresh_scene_comes_with_its_caption() -> None:
    (first, caption), (second, _) = draw_scene(), draw_scene()
    assert first.size == (480, 480) and " the " in f" {caption} " or " a " in f" {caption} "
    assert not np.array_equal(first, second)


# -- the command and the Space ---------------------------------------------------------------------


def test_without_gradio_one_line_names_the_extra(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "--model", "no/such/folder"]) == 1  # before the model is looked for
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "gradio" in printed and "pip install '.[demo]'" in printed
    with pytest.raises(ImportError, match="demo"):
        build_page(tiny_model(), None)


@pytest.mark.parametrize(("port", "message"), [("0", "between 1 and 65535"), ("70000", "between"), ("x", "invalid")])
def test_a_wrong_port_is_wrong_usage(port, message, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", "--port", port])
    assert ended.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--host", "no-such-host.invalid"], "--host no-such-host.invalid: nothing can listen there"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1: nothing can listen there"),  # of nobody's network: RFC 5737
        (["--port", "{used}"], "--host 127.0.0.1 --port {used}: nothing can listen there"),
    ],
)
def test_an_address_is_tried_before_the_model_is_loaded(given, message, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", ModuleType("gradio"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        used = server.getsockname()[1]
        given = [word.format(used=used) for word in given]
        assert main(["demo", "--model", "no/such/folder", *given]) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and message.format(used=used) in printed


def read_card() -> dict[str, Any]:
    """What stands between the dashes of the Space's README."""
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed (extra train): the Space's card is not read")
    return yaml.safe_load((ROOT / "examples/space/README.md").read_text(encoding="utf-8").split("---\n")[1])


def test_the_space_asks_for_what_the_package_needs() -> None:
    """It has the package beside it, so that its requirements are the package's own; the Space installs gradio."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    wanted = re.search(r"^dependencies = \[\n(.*?)^\]", project, re.DOTALL | re.MULTILINE)[1]
    asked = (ROOT / "examples/space/requirements.txt").read_text(encoding="utf-8").split("\n")
    assert asked == [*re.findall(r'"(.+)",', wanted), ""]
    lowest, beyond = re.search(r'^demo = \["gradio>=(\d+),<(\d+)"\]', project, re.MULTILINE).groups()
    assert int(lowest) <= int(read_card()["sdk_version"].split(".")[0]) < int(beyond)


def test_the_card_of_the_space_is_one() -> None:
    card = read_card()
    assert card["sdk"] == "gradio" and (ROOT / "examples/space" / card["app_file"]).is_file()
    assert {card["colorFrom"], card["colorTo"]} <= set("red yellow green blue indigo purple pink gray".split())
    assert len(card["title"]) > 0 and len(card["short_description"]) <= 60 and card["license"] == "mit"


# -- in the browser --------------------------------------------------------------------------------


@contextmanager
def served(*command: str, **options: Any) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of a page that a program serves, and the program, which is ended."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1", **options.pop("env", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    obeys = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # also where a shell in the background runs the tests
    program = subprocess.Popen([sys.executable, *command], env=environment, preexec_fn=obeys, **pipes, **options)
    try:
        printed = ""
        for line in program.stdout:
            printed += line
            if address := re.search(r"http://[\w.]+:\d+", line):
                break
        else:
            raise AssertionError(f"no address, but: {printed}")
        yield address[0], program
    finally:
        program.kill()
        program.communicate()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served("-m", "glip_hf.cli", "demo") as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: see `make tools`")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., Any]]:
    """Opens an address at a size; afterwards no other host has been asked for anything, and no script has failed."""
    asked: list[str] = []
    failed: list[str] = []
    opened: list[tuple[Any, str]] = []

    def open_page(address: str, size: str = "desktop") -> Any:
        width, height = SIZES[size]
        is_phone = size == "phone"
        context = browser.new_context(
            viewport={"width": width, "height": height}, is_mobile=is_phone, has_touch=is_phone, accept_downloads=True
        )
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda sent: asked.append(sent.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(address)
        page.get_by_label("What to look for").wait_for()
        opened.append((page, address))
        return page

    yield open_page
    for page, _ in opened:
        page.context.close()
    addresses = tuple(address for _, address in opened)
    assert [url for url in asked if not url.startswith((*addresses, "data:", "blob:"))] == [] and failed == []


def look(page: Any, name: str) -> None:
    """Keep a screenshot, where that is asked for."""
    if folder := os.environ.get("GLIP_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(500)
        page.screenshot(path=Path(folder) / f"{name}.png")


def press(page: Any, text: str, size: str = "desktop") -> None:
    """Type a text, press the button, wait for the result."""
    page.get_by_label("What to look for").fill(text)
    button = page.get_by_role("button", name="Find")
    button.tap() if size == "phone" else button.click()
    page.get_by_text(f"looking for: {text}.").wait_for()


def legend(page: Any) -> list[str]:
    return page.locator(".legend-item").all_inner_texts()


def read_table(page: Any) -> list[list[Any]]:
    """The table as it is read: names and numbers."""
    read = "cells => cells.map(cell => [cell.dataset.testid, cell.innerText])"
    lines = page.locator("[data-testid^='cell-']").evaluate_all(read)
    cells = {tuple(map(int, name.split("-")[1:])): text.strip() for name, text in lines}
    numbers = sorted({row for row, _ in cells})
    return [[cells[row, 0], *(float(cells[row, column]) for column in range(1, 6))] for row in numbers]


def lit(page: Any) -> list[float]:
    """The opacity of each name's boxes, after half a second."""
    page.wait_for_timeout(500)
    return page.locator("img.mask").evaluate_all("masks => masks.map(mask => +getComputedStyle(mask).opacity)")


NAMES = "yellow cross, fish, green star, white heart"


@needs_browser
@pytest.mark.parametrize("size", SIZES)
def test_names_are_typed_and_their_boxes_light_up(visit, address, size, engine) -> None:
    page = visit(address, size)
    press(page, NAMES, size)
    expected = find(engine, str(DEMO_IMAGE), NAMES).above(0.4)
    assert read_table(page) == rows(expected)
    assert legend(page) == ["fish", "green star", "yellow cross \N{MULTIPLICATION SIGN} 2"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing lies beside the screen
    page.wait_for_function("document.querySelector('.legend').getBoundingClientRect().bottom < innerHeight")  # in sight
    look(page, f"demo-{size}")
    before = lit(page)
    item = page.locator(".legend-item").last
    item.tap() if size == "phone" else item.hover()
    assert lit(page) == [0, 0, 1] and min(before) > 0.5
    look(page, f"demo-{size}-lit")


@needs_browser
def test_the_threshold_shows_more_without_the_model(visit, address, engine) -> None:
    page = visit(address)
    press(page, NAMES)
    found = find(engine, str(DEMO_IMAGE), NAMES)
    summary = page.get_by_text("found in")
    line = summary.inner_text()
    page.get_by_label("number input").fill("0.1")
    number = len(found.above(0.1)["boxes"])
    assert number > 4
    page.get_by_text(f"{number} found").wait_for()
    assert read_table(page) == rows(found.above(0.1))
    assert summary.inner_text().partition("found")[2] == line.partition("found")[2]  # the seconds of the same pass
    page.get_by_label("number input").fill("0.95")
    page.get_by_text("lower the threshold to see it").wait_for()
    assert legend(page) == [] and read_table(page) == []


@needs_browser
def test_what_is_saved_is_what_is_shown(visit, address, engine, tmp_path) -> None:
    page = visit(address)
    press(page, NAMES)
    for name in ("Table (CSV)", "Image (PNG)"):
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        download.value.save_as(tmp_path / download.value.suggested_filename)
    expected = find(engine, str(DEMO_IMAGE), NAMES).above(0.4)
    with open(tmp_path / "detections.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["text_label"] for row in table] == expected["text_labels"]
    corners = torch.tensor([[float(row[corner]) for corner in HEADERS[2:]] for row in table])
    torch.testing.assert_close(corners, expected["boxes"], atol=0.006, rtol=0)
    with Image.open(tmp_path / "detections.png") as saved, Image.open(DEMO_IMAGE) as scene:
        assert np.array_equal(saved, draw_detections(scene.convert("RGB"), expected))


@needs_browser
def test_a_caption_of_an_uploaded_photo(visit, address, tmp_path) -> None:
    """By Enter; a wide image, whose file has a name of its own; and a scene that the page draws."""
    page = visit(address)
    with Image.open(DEMO_IMAGE) as scene:
        wide = Image.new("RGB", (1440, 480), "grey")
        wide.paste(scene.convert("RGB"), (480, 0))
    wide.save(tmp_path / "wide scene.png")
    page.get_by_role("button", name="Clear").or_(page.get_by_label("Remove Image")).first.click()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "wide scene.png")
    page.locator("img[src*='wide']").wait_for()
    page.get_by_label("caption").check()
    page.get_by_label("What to look for").fill(DEMO_CAPTION)
    page.get_by_label("What to look for").press("Enter")
    page.get_by_text("looking for: the dotted yellow cross, a fish.").wait_for()
    assert "a fish" in legend(page) and all(480 <= row[2] and row[4] <= 960 for row in read_table(page))
    look(page, "demo-wide")
    page.get_by_role("button", name="Draw another scene").click()
    page.wait_for_function(f"document.querySelector('textarea,input[type=text]').value != {DEMO_CAPTION!r}")
    page.get_by_role("button", name="Find").click()
    page.wait_for_function(
        "document.querySelector('.legend-item') && !document.body.innerText.includes('yellow cross, a f')"
    )


@needs_browser
def test_errors_are_read_and_text_is_text(visit, address, tmp_path) -> None:
    page = visit(address)
    press(page, "<b>fish</b>, star")  # found in the summary as it was typed
    page.get_by_label("What to look for").fill("  ")
    page.get_by_role("button", name="Find").click()
    page.get_by_text("There is nothing to look for: type class names or a caption.").wait_for()
    look(page, "demo-error")
    (tmp_path / "notes.jpg").write_text("hello", encoding="utf-8")
    page.get_by_role("button", name="Clear").or_(page.get_by_label("Remove Image")).first.click()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "notes.jpg")
    page.locator("img[src*='notes']").wait_for(state="attached")
    page.get_by_label("What to look for").fill("fish")
    page.get_by_role("button", name="Find").click()
    page.get_by_text("Cannot read the image 'notes.jpg'").wait_for()
    page.reload()
    page.get_by_label("What to look for").wait_for()
    press(page, "fish")
    assert legend(page) == ["fish"]


@needs_browser
def test_two_visitors_do_not_see_each_other(visit, address) -> None:
    first, second = visit(address), visit(address)
    press(first, "fish")
    press(second, "green star")
    first.get_by_label("number input").fill("0.3")  # of what was found for the first
    first.wait_for_timeout(2000)
    assert legend(first) == ["fish"] and legend(second)[0].startswith("green star")


@needs_gradio
def test_the_page_listens_on_loopback_and_ends_on_a_signal() -> None:
    everywhere = {"GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SHARE": "true"}  # not what `--host` says
    with served("-m", "glip_hf.cli", "demo", env=everywhere) as (address, program):
        port = int(address.rpartition(":")[2])
        assert address.startswith("http://127.0.0.1:")
        with socket.create_connection(("127.0.0.1", port), timeout=10):
            pass
        if sys.platform == "linux":  # an address of this machine that a server on all addresses would answer at
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.2", port), timeout=10)
        program.send_signal(signal.SIGINT)
        assert "glip demo: interrupted" in program.communicate(timeout=60)[0] and program.returncode == 130


@needs_gradio
def test_another_model_has_no_scenes() -> None:
    pages = [build_page(tiny_model(), None, scenes=scenes).get_config_file() for scenes in (False, True)]
    assert ["Draw another scene" in str(page) for page in pages] == [False, True]


@needs_gradio
def test_the_code_of_the_page_of_the_documentation(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(DEMO_IMAGE, "photo.jpg")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/demo.md").read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    try:
        for block in blocks:
            exec(block, names)
    finally:
        names["page"].close(verbose=False)
    assert "3 found" in names["summary"] and names["table"]["headers"] == list(HEADERS)
    assert sorted(row[0] for row in names["table"]["data"]) == ["fish", "yellow cross", "yellow cross"]


@needs_browser
def test_the_space_runs(visit, tmp_path) -> None:
    """As `make space` makes it, with the package beside it and not from anywhere else."""
    subprocess.run(["make", "-s", "space", f"SPACE={tmp_path / 'space'}"], cwd=ROOT, check=True)
    source = tmp_path / "space/glip_hf/demo_page.py"
    source.write_text(source.read_text(encoding="utf-8").replace("# GLIP", "# GLIP of this Space"), encoding="utf-8")
    with served("app.py", cwd=tmp_path / "space", env={"PYTHONPATH": ""}) as (address, _):
        page = visit(address)
        page.get_by_text("GLIP of this Space").wait_for()
        press(page, "fish, green star")
        assert sorted(legend(page)) == ["fish", "green star"]
