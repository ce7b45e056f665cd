"""Plain tiled slides as Aperio writes them, and changes of their tags."""

import struct
from pathlib import Path

import numpy as np
import tifffile

APERIO = "Aperio Image Library v11\r\n512x512 (256x256) JPEG|AppMag = 20|MPP = 0.5"


def write_slide(path: Path, *, big: bool = False, byteorder: str = "<", description: str = APERIO) -> Path:
    """Write a tiled slide of two levels with a thumbnail between them, as Aperio does."""
    pixels = np.full((1024, 1024, 3), 200, np.uint8)
    with tifffile.TiffWriter(path, bigtiff=big, byteorder=byteorder) as file:  # type: ignore[arg-type]
        form = {"photometric": "rgb", "metadata": None}
        file.write(pixels, tile=(256, 256), description=description, **form)
        file.write(pixels[:128, :128], description=description, **form)
        file.write(pixels[:256, :256], tile=(256, 256), description=description, **form)
    return path


def change(path: Path, page: int, values: dict[str, int]) -> Path:
    """Overwrite the first value of tags."""
    with tifffile.TiffFile(path) as file:
        tags = {name: file.pages[page].tags[name] for name in values}  # type: ignore[union-attr]
        places = {
            name: (tag.valueoffset, file.byteorder + {3: "H", 4: "I"}[int(tag.dtype)]) for name, tag in tags.items()
        }
    with path.open("r+b") as raw:
        for name, (place, form) in places.items():
            raw.seek(place)
            raw.write(struct.pack(form, values[name]))
    return path
