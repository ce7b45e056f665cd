"""Bad slides of every kind that a cohort can contain, and a command prefix that makes file permissions apply to root.

A name with spaces and non-ASCII letters is valid. Here a damaged slide has such a name, so that the list of failures
must write it correctly.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile

from napari_lrmil.core.phantom import write_pyramid

ODD_NAME = "Präparat Nr. 7 – été 日本.tif"


def truncated(good: Path, folder: Path) -> Path:
    """Write the first half of a file."""
    return _written(folder / "truncated.tif", good.read_bytes()[: good.stat().st_size // 2])


def zero_bytes(good: Path, folder: Path) -> Path:
    """Write an empty file."""
    return _written(folder / "zero_bytes.svs", b"")


def text(good: Path, folder: Path) -> Path:
    """Write a text file named .svs."""
    return _written(folder / "text.svs", b"this is no slide\n")


def no_mpp(good: Path, folder: Path) -> Path:
    """Write a slide that does not state its resolution."""
    path = folder / "no_mpp.tif"
    pixels = np.full((512, 768, 3), 200, np.uint8)
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", metadata=None)
    return path


def no_tissue(good: Path, folder: Path) -> Path:
    """Write a slide without tissue."""
    path = folder / "no_tissue.tif"
    write_pyramid(path, np.full((1024, 1536, 3), 242, np.uint8), 0.5)
    return path


def corrupt_tile(good: Path, folder: Path) -> Path:
    """Zero the tile with the most bytes, on the level that a student at 2 µm per pixel reads; it contains tissue."""
    path = folder / "corrupt_tile.tif"
    shutil.copyfile(good, path)
    with tifffile.TiffFile(path) as file:
        pages = [page for page in file.pages if isinstance(page, tifffile.TiffPage)]
        widest = pages[0].imagewidth
        page = min(pages, key=lambda p: abs(p.imagewidth - widest / 4))
        place, count = max(zip(page.dataoffsets, page.databytecounts, strict=True), key=lambda pair: pair[1])
    with path.open("r+b") as raw:
        raw.seek(place)
        raw.write(bytes(count))
    return path


def odd_name(good: Path, folder: Path) -> Path:
    """Write a damaged slide whose name has spaces and non-ASCII letters."""
    return _written(folder / ODD_NAME, good.read_bytes()[:5000])


def unreadable(good: Path, folder: Path) -> Path:
    """Write a file without read permission."""
    path = folder / "unreadable.tif"
    shutil.copyfile(good, path)
    path.chmod(0)
    return path


def a_folder(good: Path, folder: Path) -> Path:
    """Create a folder with the name of a slide file."""
    path = folder / "a_folder.svs"
    path.mkdir()
    return path


def same_name(good: Path, folder: Path) -> Path:
    """Write a slide whose results would overwrite those of another slide."""
    path = folder / f"{good.stem}.tiff"  # sorted after .tif, so that the other slide comes first
    shutil.copyfile(good, path)
    return path


BAD: tuple[Callable[[Path, Path], Path], ...] = (
    truncated,
    zero_bytes,
    text,
    no_mpp,
    no_tissue,
    corrupt_tile,
    odd_name,
    unreadable,
    a_folder,
    same_name,
)
STEPS = {  # kind -> step at which it fails
    "truncated": "open",
    "zero_bytes": "open",
    "text": "open",
    "no_mpp": "open",
    "no_tissue": "tissue",
    "corrupt_tile": "read",
    "odd_name": "open",
    "unreadable": "open",
    "a_folder": "open",
    "same_name": "write",
}


def make_bad_slides(good: Path, folder: Path) -> dict[str, Path]:
    """Write one bad slide of each kind into `folder`, derived from a good slide there; return kind -> path."""
    return {make.__name__: make(good, folder) for make in BAD}


def as_ordinary_user() -> list[str] | None:
    """Return a command prefix that makes file permissions apply to root, or None if the system has none."""
    if os.name != "posix" or os.geteuid() != 0:
        return []
    command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if shutil.which(command[0]) is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        return None
    return command


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
