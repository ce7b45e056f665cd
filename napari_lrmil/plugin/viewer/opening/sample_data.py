"""Sample slide of the menu File > Open Sample: a synthetic slide, written once into the user's cache folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide

if TYPE_CHECKING:
    from napari_lrmil.plugin.viewer.layers import LayerData

SAMPLE_SLIDE = PhantomSlide("phantom_lesion", LESION, seed=7, size=(4096, 3072))


def phantom_slide() -> list[LayerData]:
    """Return the layers of the sample slide."""
    from napari_lrmil.plugin.viewer.opening.reader import read_slide_layers

    return read_slide_layers(write_sample_slide(_cache_folder()))


def write_sample_slide(folder: Path) -> Path:
    """Return the file of the sample slide in `folder`, and write it if it is missing."""
    path = folder / f"{SAMPLE_SLIDE.name}.tif"
    return path if path.is_file() else write_slide(folder, SAMPLE_SLIDE)


def _cache_folder() -> Path:
    from platformdirs import user_cache_path

    from napari_lrmil.version import __version__

    # One folder per version, because a new version may paint the slide differently.
    return Path(user_cache_path("napari-lrmil", appauthor=False)) / f"phantom-{__version__}"
