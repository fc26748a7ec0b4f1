# Copyright 2026 The glip_hf authors. MIT licence.
"""The documentation is true: the code blocks of README.md and of the pages run, links lead somewhere, badges hold.

The blocks of `PAGES` run in this order in one directory, as a reader would run them. What stands in for a reader's
files: `photo.jpg` is the test image, and `glip_tiny_model_o365_goldg.pth` a small random model in the original's
format, for which the converter needs to be told sizes and vocabulary. Blocks that begin with a comment
`<!-- run by ... -->` run elsewhere, which is checked here. `make docs` builds the site.
"""

import re
import runpy
import shlex
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from random_glip import PHOTO, random_model, save_random_model
from test_examples import RUNS

import glip_hf
from glip_hf.cli import main
from glip_hf.conversion.weight_map import to_original
from glip_hf.demo import ASSETS
from scripts.draw_concepts import TEXTS, token_scores

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "convert/README.md"]
PAGES += [f"docs/{name}.md" for name in ("start", "detect", "ground", "vocabularies", "concepts", "tiles", "deploy")]
INSTALL = "run by .ci/run in a fresh environment"
COMMANDS = "both run by .ci/run"
EXAMPLES = "run with small data by tests/test_examples.py"
BLOCK = re.compile(r"^(?:<!-- ([^>]*) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHECKPOINT = "glip_tiny_model_o365_goldg.pth"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, run_by: str = "") -> list[tuple[str, str]]:
    """(language, code) of each block of a page that runs here, or in another place; blocks without a language are
    no code to run as it is."""
    found = [match.groups("") for match in BLOCK.finditer(read(page))]
    assert {marker for marker, _, _ in found} <= {"", INSTALL, COMMANDS, EXAMPLES}
    return [(language, code) for marker, language, code in found if marker == run_by and language in ("python", "bash")]


@pytest.fixture(scope="module")
def readers_directory(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("reader")
    shutil.copy(PHOTO, path / "photo.jpg")
    for name in ("convert", "examples", "src"):
        (path / name).symlink_to(ROOT / name)
    model = random_model()
    torch.save({"model": to_original(model.state_dict(), model.config.anchor_scale)}, path / CHECKPOINT)
    model.config.save_pretrained(path / "sizes")
    return path


def test_ci_runs_the_install_block_and_both_commands() -> None:
    ci = read(".ci/run")
    ((_, commands),) = blocks("README.md", COMMANDS)
    assert len(blocks("README.md", INSTALL)) == 1 and f"<!-- {INSTALL} -->" in ci
    for command in ("make demo", "make test"):
        assert command in ci and re.search(f"^{command} ", commands, re.MULTILINE)


def test_examples_run_the_scripts_and_options_of_the_other_blocks() -> None:
    pages = ["docs/fine-tuning.md", "docs/pre-training.md", "docs/evaluation.md"]
    commands = [line for page in pages for _, code in blocks(page, EXAMPLES) for line in code.splitlines()]
    commands = [command for command in commands if "examples/" in command]
    assert len(commands) == 3
    for command in commands:
        script = re.search(r"examples/\w+\.py", command)[0]
        tested = {argument for arguments in RUNS[script] for argument in arguments}
        assert set(re.findall(r"--[\w-]+", command)) <= tested, command


def test_main_example_in_half_precision(readers_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands: only the loaded model has another dtype."""
    monkeypatch.chdir(readers_directory)
    directory = save_random_model(readers_directory / "random")
    (code,) = [code for _, code in blocks("docs/start.md") if "repo_or_dir =" in code]
    code = code.replace('"out/glip-tiny-goldg"', repr(str(directory)))
    code = code.replace("from_pretrained(repo_or_dir).eval()", 'from_pretrained(repo_or_dir, dtype="bfloat16").eval()')
    namespace: dict = {}
    exec(compile(code, "docs/start.md", "exec"), namespace)
    assert namespace["outputs"].logits.dtype == namespace["model"].dtype == torch.bfloat16
    assert not namespace["outputs"].logits.requires_grad, "gradients double the memory"
    assert len(namespace["result"]["boxes"])


def run_shell(code: str) -> None:
    """A block of `glip` commands and scripts, in this process, which has imported what they need."""
    code = code.replace(f"{CHECKPOINT} ", f"{CHECKPOINT} --config sizes --tokenizer {ASSETS / 'vocab.txt'} ")
    for line in code.replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line, comments=True)
        if program == "python":
            script, *arguments = arguments
            assert runpy.run_path(script)["main"](arguments) == 0, line
        else:
            assert program == "glip" and main(arguments) == 0, line


def test_every_block_runs(readers_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(readers_directory)
    namespace: dict = {}
    for page in PAGES:
        for language, code in blocks(page):
            if language == "python":
                exec(compile(code, page, "exec"), namespace)
            else:
                run_shell(code)
    assert (readers_directory / "annotated.png").is_file() and (readers_directory / "found.json").is_file()


def documents() -> list[Path]:
    """All pages, those outside `docs` included."""
    names = ("README.md", "CONTRIBUTING.md", "convert/README.md", "benchmarks/README.md")
    return [*(ROOT / name for name in names), *sorted((ROOT / "docs").glob("**/*.md"))]


def test_relative_links_lead_somewhere() -> None:
    for document in documents():
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}, which is not there"


def test_readme_is_short_and_its_badges_are_true() -> None:
    text, project = read("README.md"), read("pyproject.toml")
    assert len(text.splitlines()) <= 100
    badges = dict(re.findall(r"img\.shields\.io/badge/(\w+)-([^-)]+)-\w+\)", text))
    assert unquote(badges.pop("licence")) == re.search(r'^license = "(.*)"', project, re.MULTILINE)[1]
    assert unquote(badges.pop("python")) == re.search(r'^requires-python = "(.*)"', project, re.MULTILINE)[1]
    assert set(badges) == {"torch", "transformers"}
    for package, shown in badges.items():
        assert f'"{package}{unquote(shown)}"' in project, f"the badge of {package} is not the range of pyproject.toml"


def test_every_page_has_its_line_in_the_site() -> None:
    named = set(re.findall(r"[\w/.-]+\.(?:md|ipynb)(?=\s*$)", read("mkdocs.yml"), re.MULTILINE))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").glob("**/*.md")}
    pages |= {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").glob("**/*.ipynb")}
    assert sorted(pages - named) == [], "nav of mkdocs.yml has no line for these pages"
    assert [page for page in named - pages if not (ROOT / page).is_file()] == []


def test_reference_has_every_public_name() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    shown = {name.rsplit(".", 1)[-1] for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)}
    explained = {
        "PRESETS",
        "GlipPreTrainedModel",
        "kernels",
    }  # a table, a base class, a module whose functions are there
    assert set(glip_hf.__all__) - explained - shown == set()


def test_scores_of_the_concepts_page_hold() -> None:
    """Its table, and the picture in which one of two crosses answers."""
    table = re.findall(r"^\| `([a-z, ]+)` \| ([\d.]+) \|$", read("docs/concepts.md"), re.MULTILINE)
    assert len(table) == 4
    for names, score in table:
        _, _, found = token_scores(names.split(", "), threshold=0.05)
        best = max(s for s, name in zip(found["scores"].tolist(), found["text_labels"]) if name == "fish")
        assert best == pytest.approx(float(score), abs=0.02), names
    maps = [token_scores(text) for text in TEXTS]
    as_name, in_caption = (scores[tokens.index("cross")] for tokens, scores, _ in maps)
    half = as_name.shape[1] // 2  # one cross is in the left half of the image, the other in the right
    assert as_name[:, :half].max() > 0.4 and as_name[:, half:].max() > 0.4
    assert in_caption[:, :half].max() > 0.5 and in_caption[:, half:].max() < 0.25


def test_architecture_names_every_module_and_no_other() -> None:
    text, package = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), ROOT / "src" / "glip_hf"
    modules = {path.name for path in package.glob("*.py") if not path.name.startswith("_")}
    packages = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert [name for name in modules | packages if f"`{name}`" not in text] == []
    paths = {name for name in re.findall(r"`([\w/]+(?:\.py|/))`", text)}
    assert [path for path in paths if not (package / path).exists() and not (ROOT / path).exists()] == []


def test_kinds_of_damage_on_the_data_page_are_those_of_the_check() -> None:
    from glip_hf.data.check import KINDS

    table = read("docs/data.md").split("| kind | meaning |")[1].split("\n\n")[0]
    kinds = [
        kind for row in table.splitlines() for kind in re.findall(r"`(\w+)`", row.split("|")[1:2][0] if row else "")
    ]
    assert sorted(kinds) == sorted(KINDS)


def test_checkpoints_in_the_table_are_presets() -> None:
    from glip_hf.configuration_glip import PRESETS

    named = re.findall(r"^\| `(glip_\w+)`", read("convert/README.md"), re.MULTILINE)
    assert named and set(named) <= set(PRESETS)
