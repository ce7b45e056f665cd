"""Pieces of tissue on a slide: their positions and contents, laid out only when the painter reaches them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from napari_lrmil.core.errors import GeometryError
from napari_lrmil.core.phantom.composition import CELL_UM, measure_composition
from napari_lrmil.core.phantom.layout import Plan, lay_out
from napari_lrmil.core.phantom.look import LESION, Field, Outline, PhantomLook, PhantomSlide
from napari_lrmil.core.phantom.nuclei import Nuclei, populate
from napari_lrmil.core.phantom.stamps import Imprint, place_stamps
from napari_lrmil.core.phantom.strokes import Stroke, fold_stroke

_SIDE_UM = (
    3000.0  # no piece among several is longer: a plan costs 24 bytes per 4 µm², and a row of them is held at once
)
_HUGE_UM2 = 25e6  # a slide above it is never one piece; 10,000 x 10,000 px at 20x
_HUGE_SHARE = 0.5  # tissue of a huge slide whose look does not say


@dataclass(frozen=True)
class Spot:
    """Position of one piece of tissue, which is defined like a small phantom slide."""

    corner: tuple[int, int]  # x, y in px
    piece: PhantomSlide

    @property
    def rows(self) -> slice:
        """Rows of the slide that it covers."""
        return slice(self.corner[1], self.corner[1] + self.piece.size[1])

    @property
    def columns(self) -> slice:
        """Columns of the slide that it covers."""
        return slice(self.corner[0], self.corner[0] + self.piece.size[0])


@dataclass(frozen=True)
class Piece:
    """Piece of tissue with its plan and nuclei, ready to be painted."""

    spot: Spot
    plan: Plan
    nuclei: dict[str, Nuclei]
    imprints: Sequence[Imprint]
    fold: Stroke | None  # µm from the corner

    @property
    def lesions(self) -> tuple[Outline, ...]:
        """Outlines of its lesions, px of the slide."""
        if self.spot.piece.label != LESION:
            return ()
        return tuple(focus.outline() / self.spot.piece.mpp + self.spot.corner for focus in self.plan.foci)

    @property
    def folds(self) -> tuple[Outline, ...]:
        """Outlines of its folds, px of the slide."""
        return () if self.fold is None else (self.fold.outline() / self.spot.piece.mpp + self.spot.corner,)

    def composition(self) -> tuple[tuple[int, int], Field]:
        """Return its first cell (row, col), and the composition of its cells."""
        x, y = (round(c * self.spot.piece.mpp / CELL_UM) for c in self.spot.corner)
        return (y, x), measure_composition(self.plan, self.nuclei)


def make_piece(spot: Spot, look: PhantomLook) -> Piece:
    """Lay out a piece of tissue and its nuclei."""
    slide = spot.piece
    rng = random_streams(slide.seed)
    glands, plan = lay_out(slide, look, rng["plan"])
    nuclei, goblets = populate(plan, glands, look, rng["nuclei"])
    foci = plan.foci if slide.label == LESION else ()
    prints = place_stamps(nuclei, goblets, foci, slide, look, rng["stamps"])
    width, height = (n * slide.mpp for n in slide.size)
    return Piece(spot, plan, nuclei, prints, fold_stroke(width, height) if look.fold else None)


def random_streams(seed: int) -> dict[str, np.random.Generator]:
    """Return one random stream per step, so that draws in one step do not change another step."""
    steps = ("plan", "nuclei", "stamps", "light", "spots")
    return {step: np.random.default_rng([seed, i]) for i, step in enumerate(steps)}


def find_spots(slide: PhantomSlide, look: PhantomLook) -> list[Spot]:
    """Return the positions of the pieces from top to bottom: the whole slide, or one per cell of a coarse grid.

    Raises
    ------
    GeometryError
        If the share of tissue is too large, or the pieces would be too small.
    """
    width, height = (n * slide.mpp for n in slide.size)
    share = look.tissue_share
    if share is None and width * height <= _HUGE_UM2:
        return [Spot((0, 0), slide)]
    filled = _share_of_l(look)
    share = min(_HUGE_SHARE, filled) if share is None else share
    if not 0 < share <= filled:
        raise GeometryError(f"{slide.name}: a tissue share of {share:g} is impossible; choose up to {filled:.2f}")
    grid = tuple(math.ceil(side * math.sqrt(share / filled) / _SIDE_UM) for side in (width, height))
    size = tuple(int(s / n * math.sqrt(share / filled) / CELL_UM) for s, n in zip((width, height), grid, strict=True))
    rng = random_streams(slide.seed)["spots"]
    places = [(column, row) for row in range(grid[1]) for column in range(grid[0])]
    return sorted((_place(slide, place, grid, size, rng) for place in places), key=lambda spot: spot.corner[1])


def _share_of_l(look: PhantomLook) -> float:
    """Return the share of tissue in a large piece: the L within its margins."""
    notch = math.prod(n - look.margin for n in look.notch)
    return (1 - 2 * look.margin) ** 2 - notch


def _place(
    slide: PhantomSlide,
    place: tuple[int, int],
    grid: tuple[int, ...],
    size: tuple[int, ...],
    rng: np.random.Generator,
) -> Spot:
    """Return a spot of `size` at a random position in its grid cell; both in whole cells of the composition."""
    corner, extent = [], []
    for i in range(2):
        pitch = slide.size[i] * slide.mpp / grid[i] / CELL_UM
        first, end = math.ceil(place[i] * pitch), math.floor((place[i] + 1) * pitch)
        cells = min(size[i], end - first)
        corner.append(round(int(rng.integers(first, end - cells + 1)) * CELL_UM / slide.mpp))
        extent.append(round(cells * CELL_UM / slide.mpp))
    name, seed = f"{slide.name}-{place[1]}-{place[0]}", int(rng.integers(2**62))
    return Spot((corner[0], corner[1]), PhantomSlide(name, slide.label, seed, (extent[0], extent[1]), slide.mpp))
