"""Check that the levels of a pyramid show the picture of level 0, and a handle that offers the trusted levels only.

Files exist whose "level" is a label, a macro image or a mask. OpenSlide offers every page that is marked as reduced.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_lrmil.core.geometry import BoxLevel0, Level, OpenSlideWindow
from napari_lrmil.core.slides.missing_tiles import TileMap
from napari_lrmil.core.slides.openslide_handle import ColourProfile, Handle, Opener
from napari_lrmil.core.slides.resampling import area_average, composite_on_white

ASPECT_TOLERANCE = 0.02  # relative difference of a level's downsamples along x and y
PLACES = 3  # of comparison along each side of the slide
PLACE_PX = 64  # least side of a place in level-0 pixels; four pixels of the compared level if these are larger
SAMPLES = 4  # values along each side of a place
OVERVIEW_PIXELS = 1_500_000  # a coarsest level up to this size is read whole, to choose places with contrast
IGNORED_SHARE = 0.25  # of the places: missing or damaged tiles make two levels differ where the picture is the same
SAME_CORRELATION = 0.85  # same pictures: 0.98 and above; two different slides: below 0.5
SAME_DIFFERENCE = 8.0  # grey levels, mean; blank places have no correlation
MOST_DIFFERENCE = 40.0  # grey levels, mean: beyond lower levels with more contrast or another gamma

Samples = NDArray[np.float64]  # (places, SAMPLES, SAMPLES, 3)


@dataclass(frozen=True)
class LevelCheck:
    """Outcome of the check.

    Attributes
    ----------
    trusted
        Indices of the levels that show the picture of level 0, in the file's order.
    warnings
        A sentence for each level that is left out.
    pixels_compared
        Native pixels of level 0 that were read for the comparison.
    failure
        Reason why the content could not be compared; the handle must not be used again then.
    """

    trusted: tuple[int, ...]
    warnings: tuple[str, ...] = ()
    pixels_compared: int = 0
    failure: str | None = None


def check_levels(handle: Handle, levels: Sequence[Level], *, compare: bool) -> LevelCheck:
    """Return which levels show the picture of level 0, by their shape and, with `compare`, by their content."""
    trusted, warnings = [levels[0]], []
    for level in levels[1:]:
        across, down = levels[0].width / level.width, levels[0].height / level.height
        rounding = 1 / level.width + 1 / level.height  # a side may be rounded up or down
        if abs(across / down - 1) <= ASPECT_TOLERANCE + rounding:
            trusted.append(level)
        else:
            reason = f"its sides are {across:.4g} and {down:.4g} times smaller than level 0's"
            warnings.append(_left_out(level, reason))
    if not compare:
        return LevelCheck(tuple(level.index for level in trusted), tuple(warnings))
    return _compare_contents(handle, trusted, warnings)


def _left_out(level: Level, reason: str) -> str:
    return (
        f"level {level.index} of the file ({level.width} x {level.height} px) is left out: {reason}, so it is not the "
        "same picture; a finer level is read instead"
    )


def _compare_contents(handle: Handle, trusted: list[Level], warnings: list[str]) -> LevelCheck:
    """Compare each level with level 0. If the coarsest differs, places are chosen on the next, and all are compared."""
    pixels = 0
    failure = None
    try:
        while len(trusted) > 1:
            places = _choose_places(handle, trusted)
            base = _sample(handle, trusted[0], places)
            pixels += sum(round(place.width * place.height) for place in places)
            differing = [level for level in trusted[1:] if not _is_same(base, _sample(handle, level, places))]
            warnings += [_left_out(level, "its content differs from level 0's") for level in differing]
            trusted = [level for level in trusted if level not in differing]
            if not differing:
                break
    except Exception as error:  # OpenSlide raises many kinds on a damaged tile
        failure = str(error)
        warnings = [*warnings, f"levels could not be compared with level 0 ({failure}); their sizes alone were checked"]
    return LevelCheck(tuple(level.index for level in trusted), tuple(warnings), pixels, failure)


def _choose_places(handle: Handle, levels: Sequence[Level]) -> list[BoxLevel0]:
    """Return boxes in a grid over the slide, each where the coarsest level has the most contrast nearby."""
    base, coarsest = levels[0], levels[-1]
    side = min(max(PLACE_PX, SAMPLES * coarsest.downsample), base.width, base.height)
    px = max(1, round(side / coarsest.downsample))  # of the coarsest level
    cell = coarsest.width // PLACES, coarsest.height // PLACES
    if coarsest.width * coarsest.height > OVERVIEW_PIXELS or min(cell) <= px:
        spots = [((i + 0.5) / PLACES, (j + 0.5) / PLACES) for j in range(PLACES) for i in range(PLACES)]
        corners = [(x * base.width - side / 2, y * base.height - side / 2) for x, y in spots]
    else:
        overview = _read(handle, coarsest, BoxLevel0(0, 0, base.width, base.height), (coarsest.width, coarsest.height))
        pixels = [_most_contrast(overview, i, j, cell, px) for j in range(PLACES) for i in range(PLACES)]
        corners = [(x * coarsest.downsample, y * coarsest.downsample) for x, y in pixels]
    return [
        BoxLevel0(min(max(0.0, x), base.width - side), min(max(0.0, y), base.height - side), side, side)
        for x, y in corners
    ]


def _most_contrast(overview: NDArray[Any], i: int, j: int, cell: tuple[int, int], px: int) -> tuple[int, int]:
    """Return the corner, x then y, of the block of `px` pixels with the largest variance in a cell of the overview."""
    part = overview[j * cell[1] : (j + 1) * cell[1], i * cell[0] : (i + 1) * cell[0]].mean(axis=2)
    rows, columns = part.shape[0] // px, part.shape[1] // px
    blocks = part[: rows * px, : columns * px].reshape(rows, px, columns, px)
    spread = blocks.var(axis=(1, 3)) if px > 1 else np.abs(blocks[:, 0, :, 0] - np.median(part))
    row, column = divmod(int(spread.argmax()), columns)
    return i * cell[0] + column * px, j * cell[1] + row * px


def _sample(handle: Handle, level: Level, places: Sequence[BoxLevel0]) -> Samples:
    return np.stack([_read(handle, level, place, (SAMPLES, SAMPLES)).astype(np.float64) for place in places])


def _read(handle: Handle, level: Level, box: BoxLevel0, size: tuple[int, int]) -> NDArray[np.uint8]:
    window = OpenSlideWindow.around(box, level)
    image = handle.read_region(window.location, window.level, window.size)
    return area_average(composite_on_white(image), window, size)


def _is_same(mine: Samples, theirs: Samples) -> bool:
    """Return whether the samples of two levels agree, without the places that differ most."""
    differences = np.abs(mine - theirs).mean(axis=(1, 2, 3))
    used = np.argsort(differences)[: len(differences) - int(IGNORED_SHARE * len(differences))]
    difference = differences[used].mean()
    if not SAME_DIFFERENCE < difference <= MOST_DIFFERENCE:
        return bool(difference <= SAME_DIFFERENCE)
    a, b = (samples[used].ravel() - samples[used].mean() for samples in (mine, theirs))
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return norm > 0 and float(a @ b) / norm >= SAME_CORRELATION


@dataclass(frozen=True)
class LevelSelection:
    """Opener of a slide that offers only some levels of its file. It can be pickled if `opener` can."""

    opener: Opener
    trusted: tuple[int, ...]

    def __call__(self, path: Path) -> Handle:
        """Return an open handle."""
        return SelectedLevels(self.opener(path), self.trusted)


class SelectedLevels:
    """Handle of a slide with some levels of another handle. Level numbers count the selected ones."""

    def __init__(self, handle: Handle, trusted: Sequence[int]) -> None:
        self._handle, self._trusted = handle, tuple(trusted)
        self.dimensions = handle.dimensions
        self.level_dimensions = tuple(handle.level_dimensions[i] for i in trusted)
        self.level_downsamples = tuple(handle.level_downsamples[i] for i in trusted)

    @property
    def properties(self) -> Mapping[str, str]:
        """Properties of the file, of all its levels."""
        return self._handle.properties

    @property
    def associated_images(self) -> Mapping[str, Any]:
        """Label, macro and thumbnail."""
        return self._handle.associated_images

    @property
    def color_profile(self) -> ColourProfile | None:
        """ICC profile."""
        return self._handle.color_profile

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        """Return RGBA pixels of a selected level."""
        return self._handle.read_region(location, self._trusted[level], size)

    def missing_tiles(self, level: Level) -> TileMap | None:
        """Return the tiles of a selected level that the handle knows to be missing."""
        own = getattr(self._handle, "missing_tiles", None)
        tiles: TileMap | None = None if own is None else own(replace(level, index=self._trusted[level.index]))
        return None if tiles is None else replace(tiles, level=level)

    def close(self) -> None:
        """Close the file."""
        self._handle.close()
