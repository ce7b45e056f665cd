"""OME metadata of Zarr folders, NGFF 0.4 and 0.5, read without `zarr`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

METADATA = ("zarr.json", ".zattrs")  # of NGFF 0.5, and of 0.4


def is_ome_zarr(folder: Path) -> bool:
    """Return whether a folder holds an OME-Zarr image, or a series of such images."""
    return folder.is_dir() and any(holds_image(part) for part in (folder, folder / "0"))


def holds_image(folder: Path) -> bool:
    """Return whether a Zarr group is an image with levels."""
    return bool(read_ome_attributes(folder).get("multiscales"))


def read_ome_attributes(folder: Path) -> dict[str, Any]:
    """Return the OME attributes of a Zarr group; empty if it has none that can be read."""
    for name in METADATA:
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if name == "zarr.json":
            content = content.get("attributes", {}) if isinstance(content, dict) else {}
        if isinstance(content, dict):
            ome = content.get("ome", content)
            return ome if isinstance(ome, dict) else {}
    return {}
