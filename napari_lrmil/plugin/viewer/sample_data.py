"""File > Open Sample: a phantom slide, painted once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide

if TYPE_CHECKING:
    from napari_lrmil.plugin.viewer.layers import LayerData

SAMPLE_SLIDE = PhantomSlide("phantom_lesion", LESION, seed=7, size=(4096, 3072))


def phantom_slide() -> list[LayerData]:
    """Return the layers of the sample slide, painted on first use into the user's cache folder."""
    from napari_lrmil.plugin.viewer.reader import read_slides

    return read_slides(write_sample_slide(_cache_folder()))


def write_sample_slide(folder: Path) -> Path:
    """Return the sample slide in `folder`; it is written where it is not there."""
    path = folder / f"{SAMPLE_SLIDE.name}.tif"
    return path if path.is_file() else write_slide(folder, SAMPLE_SLIDE)


def _cache_folder() -> Path:
    from platformdirs import user_cache_path

    from napari_lrmil.version import __version__

    return Path(user_cache_path("napari-lrmil", appauthor=False)) / f"phantom-{__version__}"
