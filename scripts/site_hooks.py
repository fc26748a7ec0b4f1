# Copyright 2026 The glip_hf authors. MIT licence.
"""MkDocs hooks: pages link to files of the repository, and the site has these files as pages of its own.

    docs/data.md: [recipes](../examples/configs)   # in the site: a list of the folder's files, each with its source

So a link works on a code host and in the site alike, and the site needs no address of a repository. Markdown files
outside `docs/`, such as `benchmarks/README.md`, are pages at their own path, and may stand in `nav`.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)(#[^)]*)?(?=\))")
CODE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
REFERENCE = re.compile(r"\[(<code>[\w.]+</code>)\]")  # Transformers' docstrings write [`GlipProcessor`]
LANGUAGES = {".py": "python", ".sh": "bash", ".yml": "yaml", ".yaml": "yaml"}

MADE: dict[str, str] = {}
"""Pages that are made here, and the path in the repository that their links are relative to."""


def _page_of(path: str) -> str:
    """The page that shows a file or a folder of the repository; what lies in `docs` is in the site as it is."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"{path}/index.md"
    return path if path.endswith(".md") else f"{path}.md"


def _target(location: str, link: str) -> str | None:
    """The path in the repository that a link of the file at `location` leads to; None if there is nothing."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(location), link))
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def _content(path: str) -> str:
    """The markdown of the page that shows a file or a folder."""
    if (ROOT / path).is_dir():
        names = sorted(entry.name for entry in (ROOT / path).iterdir() if not entry.name.startswith(("_", ".")))
        return f"# {path}\n\n" + "\n".join(f"- [{name}]({name})" for name in names)
    text = (ROOT / path).read_text(encoding="utf-8")
    return (
        text if path.endswith(".md") else f"# {path}\n\n````{LANGUAGES.get(Path(path).suffix, 'text')}\n{text}\n````\n"
    )


def _pages(nav: Any) -> list[str]:
    """All pages that `nav` names."""
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav or []) for page in _pages(entry)]


def on_files(files: Files, config: Any) -> Files:
    """Add the files of the repository that `nav` names or a page links to."""

    def linked(markdown: str, location: str) -> list[str]:
        links = LINK.finditer(CODE.sub("", markdown))
        return [path for match in links if (path := _target(location, match[1])) and not path.startswith("docs/")]

    MADE.clear()
    todo = [page for page in _pages(config.nav) if files.get_file_from_path(page) is None and (ROOT / page).is_file()]
    for file in files.documentation_pages():
        if file.src_uri.endswith(".md"):
            todo += linked(file.content_string, f"docs/{file.src_uri}")
    while todo:
        path = todo.pop()
        page = _page_of(path)
        if page in MADE:
            continue
        MADE[page] = f"{path}/" if (ROOT / path).is_dir() else path
        content = _content(path)
        files.append(File.generated(config, page, content=content))
        if path.endswith(".md") or MADE[page] != path:
            todo += linked(content, MADE[page])
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links at the pages of what they name."""
    here = page.file.src_uri
    location = MADE.get(here, f"docs/{here}")

    def replace(match: re.Match[str]) -> str:
        path = _target(location, match[1])
        if path is None or (here not in MADE and path.startswith("docs/")):
            return match[0]
        return posixpath.relpath(_page_of(path), posixpath.dirname(here) or ".") + (match[2] or "")

    return LINK.sub(replace, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """References of Transformers' docstrings without their brackets."""
    return REFERENCE.sub(r"\1", html)
