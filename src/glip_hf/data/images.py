# Copyright 2026 The glip_hf authors. MIT licence.
"""Where an image is that an annotation file names: one finder for training, validation, evaluation and checks."""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

SHOWN = 20  # missing images listed in a message
DEPTH = 16  # folders of a name that are tried
URL_FIELDS = ("coco_url", "flickr_url", "url")
"""Fields of an image's entry that may hold a URL: its file is looked for in the folder, nothing is fetched."""


class MissingImages(FileNotFoundError):
    """Images that the annotations name and the folder lacks: `paths`."""

    def __init__(self, paths: Sequence[str], total: int, option: str = "--images or --data-root") -> None:
        self.paths = list(paths)
        listed = "".join(f"\n  {path:.300}" for path in self.paths[:SHOWN])
        more = f"\n  and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
        super().__init__(
            f"{len(paths)} of {total} images are missing, nothing was computed (is {option} the right folder?):"
            f"{listed}{more}"
        )


class RefusedImage(ValueError):
    """A file name that leads out of its folder, or to the file of another image."""


@dataclass
class _Listing:
    real: str  # the folder without links
    files: dict[str, bool]  # name -> whether it is a link

    @cached_property
    def folded(self) -> dict[str, str | None]:
        """Name without case and accents' spelling -> name, None where several have the same."""
        folded: dict[str, str | None] = {}
        for name in self.files:
            key = _fold(name)
            folded[key] = None if key in folded else name
        return folded


@dataclass
class ImageFinder:
    """Finds the images that an annotation file names in the folder given for them.

    A name is tried as it is written; as another system or tool would have meant it (a URL, `%20`, `C:\\photos\\a.png`);
    without its leading folders, one after the other (`train/a.png` in the folder `train`); and at last in another
    spelling of the same letters (`A.PNG`). Folders are listed once: no file is touched for each image.

    Attributes:
        folder: of the images.
        allow_outside: also take absolute paths, `../` and links that lead out of the folder.
    """

    folder: str | Path
    allow_outside: bool = False
    _listings: dict[str, _Listing] = field(init=False, repr=False, default_factory=dict)
    _owners: dict[str, str] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = os.path.normpath(self.folder)
        root = Path(os.path.realpath(self.folder))
        # The files of a snapshot of the Hub are links into the cache's own folder of contents.
        snapshots = [path for path in (root, *root.parents) if path.parent.name == "snapshots"]
        self._roots = [str(root), *(str(path.parents[1] / "blobs") for path in snapshots)]

    def find(self, *names: Any) -> str:
        """The file of the first of these names that is there; where none is, the place where the first should be.

        Args:
            names: `file_name` and URLs of one image, in order of preference; None and "" are missing.

        Raises:
            RefusedImage: for a file outside the folder, and where a guess leads to the file of another name.
            ValueError: if there is no name, or one is not text.
        """
        written = [name for name in names if name is not None and name != ""]
        for name in written:
            if not isinstance(name, str) or "\0" in name:
                raise ValueError(f"the file name {name!r:.100} is not valid: give the name of the image file as text")
        if not written:
            raise ValueError("it has neither a file_name nor a URL")
        spellings = [spelling for name in written for spelling in _spellings(name)]
        found = next((one for one in self._candidates(spellings) if self._exists(one[1])), None)
        if found is None:
            first = os.path.normpath(os.path.join(self.folder, spellings[0]))
            return first if _contains(self.folder, first) else self._inside(_parts(spellings[0]))
        is_guess, path = found
        if not (self.allow_outside or self._is_inside(path)):
            raise RefusedImage(
                f"the file name {written[0]!r:.100} leads out of the folder {self.folder} (to "
                f"{os.path.realpath(path)}): move the image into the folder, or allow it with --allow-outside "
                "(allow_outside: true in a recipe)"
            )
        owner = self._owners.setdefault(path, written[0])
        if is_guess and owner != written[0]:
            raise RefusedImage(
                f"the file names {owner!r:.100} and {written[0]!r:.100} both lead to {path}: name the folder that "
                "they are relative to"
            )
        return path

    def has_changed(self, path: str, existed: bool) -> bool:
        """Whether `find` would give another answer now than this path, of a file or (not `existed`) for want of one."""
        try:
            found = ImageFinder(self.folder, self.allow_outside).find(path)
        except RefusedImage:
            return True
        return found != path or os.path.isfile(path) != existed

    def _inside(self, parts: Sequence[str]) -> str:
        return os.path.normpath(os.path.join(self.folder, *parts))

    def _candidates(self, spellings: Sequence[str]) -> Iterator[tuple[bool, str]]:
        """Whether it is a guess, and the path; the likeliest first."""
        for spelling in spellings:
            yield False, os.path.normpath(os.path.join(self.folder, spelling))
        guesses = []
        for parts in map(_parts, spellings):
            guesses += [self._inside(parts[start:]) for start in range(max(len(parts) - DEPTH, 0), len(parts))]
        yield from ((True, path) for path in guesses)
        for path in guesses:
            folder, name = os.path.split(path)
            if (other := self._listing(folder).folded.get(_fold(name))) is not None:
                yield True, os.path.join(folder, other)

    def _listing(self, folder: str) -> _Listing:
        if folder not in self._listings:
            self._listings[folder] = _Listing(os.path.realpath(folder), list_files(folder))
        return self._listings[folder]

    def _exists(self, path: str) -> bool:
        folder, name = os.path.split(path)
        # Of other folders no listing is made: any folder of the machine may be named.
        return name in self._listing(folder).files if _contains(self.folder, path) else os.path.isfile(path)

    def _is_inside(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if _contains(self.folder, path) and not self._listing(folder).files[name]:
            real = os.path.join(self._listing(folder).real, name)
        else:
            real = os.path.realpath(path)
        return any(_contains(root, real) for root in self._roots)


def _spellings(name: str) -> list[str]:
    """What a name may mean as a path with slashes, in order of preference; one with a leading slash is absolute."""
    if scheme := re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]*/?", name):  # of a URL the path
        plain = [re.split(r"[?#]", name[scheme.end() :])[0]]
    else:
        plain = [name]
        if "\\" in name:
            plain.append(re.sub(r"^[A-Za-z]:", "", name).replace("\\", "/"))
    return list(dict.fromkeys([*plain, *map(unquote, plain)]))


def _parts(spelling: str) -> list[str]:
    """The folders and the file of a path, without what leads out of the folder that it is joined to."""
    return [part for part in os.path.normpath(spelling).split(os.sep) if part not in ("", "..", ".")]


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _contains(folder: str, path: str) -> bool:
    """Whether a normalised path lies in a normalised folder."""
    if folder == ".":
        return not os.path.isabs(path) and path.split(os.sep)[0] != ".."
    return path.startswith(folder if folder.endswith(os.sep) else folder + os.sep)


def list_files(folder: str) -> dict[str, bool]:
    """The names of a folder's files, and whether each is a link; empty for a folder that cannot be listed."""
    try:
        with os.scandir(folder or ".") as entries:
            links = {entry.name: entry.is_symlink() for entry in entries if entry.is_symlink() or entry.is_file()}
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return {}
    return {name: link for name, link in links.items() if not link or os.path.isfile(os.path.join(folder, name))}


def missing_files(paths: Iterable[str]) -> list[str]:
    """Those of the paths at which there is no file, in their order, from one listing of each folder."""
    listings: dict[str, dict[str, bool]] = {}
    missing = []
    for path in dict.fromkeys(paths):
        folder, name = os.path.split(path)
        if folder not in listings:
            listings[folder] = list_files(folder)
        if name not in listings[folder]:
            missing.append(path)
    return missing
