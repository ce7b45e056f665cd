"""Entries of the caches that the program and its downloads keep on a disk, with their sizes, and their removal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from napari_lrmil.core.encoders.hub_name import HUB_PREFIX
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.user_folders import cache_folder

ALL = "all"  # name that clears every entry of this program, but none of the hub: other programs use that cache too
CONTENTS = {  # name in the cache folder -> what it is
    "runtimes": "converted models and runtime checks",
    "opened-slides.txt": "slides that were opened safely once",
    "logs": "logs of unexpected errors",
    "matplotlib": "fonts of matplotlib",
    "demo": "settings of the demo's window",
}
PHANTOMS = "phantom slides of File > Open Sample"
OTHER = "not of this version"


@dataclass(frozen=True)
class CachedEntry:
    """Something that is kept, and can be made or downloaded again.

    Attributes
    ----------
    name
        What ``cache --clear`` takes.
    about
        What it is.
    path
        File or folder.
    size
        Bytes on the disk.
    is_shared
        Whether other programs use it too, as they do the hub's cache.
    """

    name: str
    about: str
    path: Path
    size: int
    is_shared: bool


def list_cached() -> Iterator[CachedEntry]:
    """Yield the entries of this program's cache, then the models and encoders from the hub."""
    folder = cache_folder()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        about = CONTENTS.get(path.name, PHANTOMS if path.name.startswith("phantom-") else OTHER)
        yield CachedEntry(path.name, about, path, _size(path), is_shared=False)
    yield from _hub_entries()


def _hub_entries() -> Iterator[CachedEntry]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from napari_lrmil.core.models.card import CARD

    for path in sorted(Path(HF_HUB_CACHE).glob("models--*--*")):
        name = HUB_PREFIX + path.name.removeprefix("models--").replace("--", "/", 1)
        is_bundle = any(path.glob(f"snapshots/*/{CARD}"))
        yield CachedEntry(name, "model" if is_bundle else "encoder, or of another program", path, _size(path), True)


def _size(path: Path) -> int:
    """Return the bytes of a file or folder. Links count nothing: the hub's cache links to files that are counted."""
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.lstat().st_size for file in files if file.is_file() and not file.is_symlink())


def clear_cached(names: Sequence[str]) -> list[CachedEntry]:
    """Remove entries by their names and return them; `ALL` stands for all that are not shared.

    Raises
    ------
    ConfigError
        If there is no such entry, before anything is removed, or one cannot be removed.
    """
    entries = list(list_cached())
    chosen = [entry for entry in entries if entry.name in names or (ALL in names and not entry.is_shared)]
    missing = [name for name in names if name != ALL and name not in {entry.name for entry in entries}]
    if missing:
        present = ", ".join(entry.name for entry in entries) or "nothing"
        raise ConfigError(f"nothing of the name '{missing[0]}' is kept; there is: {present}")
    for entry in chosen:
        try:
            _remove(entry.path)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(
                f"{entry.path} cannot be removed ({reason}); close programs that use it, or ask who owns it"
            ) from error
    return chosen


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
