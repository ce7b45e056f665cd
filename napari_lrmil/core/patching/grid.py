"""Nested patch grids: HR patches with enough tissue, and the LR patches that contain them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.errors import ResolutionError, TissueError
from napari_lrmil.core.geometry import MPP_TOLERANCE, Int64, Lattice, PatchPlan
from napari_lrmil.core.patching.missing_tissue import why_no_tissue
from napari_lrmil.core.patching.tissue import Mask, Tissue, TissueConfig, find_tissue
from napari_lrmil.core.slides.slide import Slide


@dataclass(frozen=True)
class NestedGrid:
    """Selected patches of both resolutions.

    Attributes
    ----------
    lattice
        Lattice of the cells.
    hr_index
        (K, 2) columns and rows of the selected HR cells, in reading order.
    lr_index
        (N, 2) columns and rows of the selected LR cells, in reading order.
    parent
        (K,) row of `lr_index` that contains each HR patch.
    """

    lattice: Lattice
    hr_index: Int64
    lr_index: Int64
    parent: Int64

    def __post_init__(self) -> None:
        if len(self.parent) != len(self.hr_index):
            raise ValueError(f"{len(self.hr_index)} HR patches, but {len(self.parent)} parents")

    @property
    def hr_corners(self) -> Int64:
        """(K, 2) level-0 corners (x, y) of the HR patches."""
        return self.lattice.hr_corners(self.hr_index)

    @property
    def lr_corners(self) -> Int64:
        """(N, 2) level-0 corners (x, y) of the LR patches."""
        return self.lattice.lr_corners(self.lr_index)

    @property
    def child(self) -> Int64:
        """(K,) position of each HR patch within the n * n cells of its parent, row by row."""
        inside = self.hr_index % self.lattice.n
        return inside[:, 1] * self.lattice.n + inside[:, 0]

    @property
    def hr_size(self) -> tuple[int, int]:
        """Width and height of an HR patch in level-0 pixels."""
        return self.lattice.cell

    @property
    def slots(self) -> int:
        """HR patches that an LR patch can hold."""
        return self.lattice.n**2

    @property
    def patch_ratio(self) -> float:
        """HR patches per LR patch: the upper bound on what low resolution can save."""
        return len(self.hr_index) / len(self.lr_index)

    def select(self, is_selected: NDArray[np.bool_]) -> NestedGrid:
        """Return the grid of the LR patches that (N,) `is_selected` marks, with their HR patches."""
        children = is_selected[self.parent]
        row = np.cumsum(is_selected) - 1  # new row of each selected LR patch
        return NestedGrid(self.lattice, self.hr_index[children], self.lr_index[is_selected], row[self.parent[children]])


@dataclass(frozen=True)
class PlacedGrid(NestedGrid):
    """LR patches with HR patches at any place: those of another program, whose grid does not nest into LR patches.

    Each HR patch belongs to the LR patch that holds most of it. `hr_index` is the cell of its centre.

    Attributes
    ----------
    corners
        (K, 2) level-0 corners (x, y) of the HR patches.
    side
        Side of an HR patch in level-0 pixels.
    """

    corners: Int64
    side: int

    @property
    def hr_corners(self) -> Int64:
        """(K, 2) level-0 corners (x, y) of the HR patches."""
        return self.corners

    @property
    def hr_size(self) -> tuple[int, int]:
        """Width and height of an HR patch in level-0 pixels."""
        return self.side, self.side

    @property
    def slots(self) -> int:
        """HR patches of the LR patch that has most of them."""
        return int(np.bincount(self.parent).max())

    @property
    def child(self) -> Int64:
        """(K,) number of each HR patch among those of its parent, in their order."""
        order = np.argsort(self.parent, kind="stable")
        starts = np.searchsorted(self.parent[order], self.parent[order])
        number = np.empty(len(order), dtype=np.int64)
        number[order] = np.arange(len(order)) - starts
        return number

    @property
    def divided_share(self) -> float:
        """Share of the area of HR patches that lies outside of their LR patches, 0 to 1."""
        start, size = self.lr_corners[self.parent], np.asarray(self.lattice.lr_cell)
        inside = np.minimum(self.corners + self.side, start + size) - np.maximum(self.corners, start)
        return float(1 - np.prod(np.clip(inside, 0, None), axis=1).mean() / self.side**2)

    def select(self, is_selected: NDArray[np.bool_]) -> PlacedGrid:
        """Return the grid of the LR patches that (N,) `is_selected` marks, with their HR patches."""
        nested, children = super().select(is_selected), is_selected[self.parent]
        return PlacedGrid(
            self.lattice, nested.hr_index, nested.lr_index, nested.parent, self.corners[children], self.side
        )


def place_patches(lattice: Lattice, corners: Int64, side: int) -> PlacedGrid:
    """Return the grid of (K, 2) HR patches of `side` level-0 pixels, each in the LR cell that holds most of it.

    The patches are no larger than an LR cell, so that this is the cell of the patch's centre.
    """
    last = (lattice.columns - 1, lattice.rows - 1)
    center = (2 * corners + side - 2 * np.asarray(lattice.origin)) // (2 * np.asarray(lattice.cell))
    grid = nested_grid_from_cells(lattice, np.clip(center, 0, last))
    return PlacedGrid(lattice, grid.hr_index, grid.lr_index, grid.parent, corners, side)


def build_nested_grid(lattice: Lattice, shares: NDArray[np.float32], min_share: float) -> NestedGrid:
    """Return the grids for tissue shares (rows, columns) of the HR cells.

    HR cells with at least `min_share` of tissue are selected, and every LR cell with a selected HR cell, so that no HR
    patch lacks a parent (docs/explanation/method.md 1).
    """
    rows, columns = np.nonzero(shares >= min_share)
    return nested_grid_from_cells(lattice, np.stack([columns, rows], axis=1).astype(np.int64))


def nested_grid_from_cells(lattice: Lattice, hr_index: Int64) -> NestedGrid:
    """Return the grids for (K, 2) selected HR cells. Parents follow by integer division."""
    lr_columns = lattice.columns // lattice.n
    key = (hr_index[:, 1] // lattice.n) * lr_columns + hr_index[:, 0] // lattice.n
    lr_keys, parent = np.unique(key, return_inverse=True)
    lr_index = np.stack([lr_keys % lr_columns, lr_keys // lr_columns], axis=1).astype(np.int64)
    return NestedGrid(lattice, hr_index, lr_index, parent.astype(np.int64))


def find_nested_grid(slide: Slide, plan: PatchPlan, config: TissueConfig | None = None) -> NestedGrid:
    """Return the nested grids of `slide`; see `find_tissue_grid`."""
    return find_tissue_grid(slide, plan, config).grid


@dataclass(frozen=True, eq=False)  # compared by identity, as comparing the arrays would be slow
class TissueGrid:
    """Tissue mask of a slide and the nested grids derived from it.

    Attributes
    ----------
    tissue
        The mask, on the lattice of the patches.
    grid
        Patches of both resolutions.
    edited
        Whether the mask was edited by hand.
    """

    tissue: Tissue
    grid: NestedGrid
    edited: bool = False


def find_tissue_grid(slide: Slide, plan: PatchPlan, config: TissueConfig | None = None) -> TissueGrid:
    """Segment the tissue of `slide` and return it with the nested grids.

    Raises
    ------
    ResolutionError
        If the slide is too coarse for LR patches.
    TissueError
        If no patch has enough tissue.
    """
    config = config or TissueConfig()
    require_resolution(slide, plan.lr_mpp, "student (LR)")
    _require_size(slide, plan, config.min_share)
    tissue = find_tissue(slide, plan.lattice(slide.bounds, slide.mpp), config)
    try:
        return TissueGrid(tissue, nested_grid_from_tissue(slide.path, tissue, config))
    except TissueError:
        reason = why_no_tissue(slide, tissue)
        if reason is None:
            raise
        raise TissueError(slide.path, f"no tissue found: {reason}") from None


def tissue_grid_from_mask(path: Path, original: TissueGrid, mask: Mask, config: TissueConfig) -> TissueGrid:
    """Return the grids of an edited mask on the raster of `original`.

    Raises
    ------
    TissueError
        If no patch has enough tissue.
    """
    tissue = replace(original.tissue, mask=mask)
    return TissueGrid(tissue, nested_grid_from_tissue(path, tissue, config), edited=True)


def place_tissue(tissue: Tissue, lattice: Lattice) -> Tissue:
    """Return a mask on another lattice of equal HR cells, as `find_tissue` would find it there.

    Lattices of one slide differ by `n` alone, that is by how far they reach beyond the slide, where no tissue is.

    Raises
    ------
    ValueError
        If the cells differ.
    """
    if (tissue.lattice.cell, tissue.lattice.origin) != (lattice.cell, lattice.origin):
        raise ValueError(f"cells of {tissue.lattice.cell} at {tissue.lattice.origin} are not those of {lattice}")
    k = tissue.mask.shape[0] // tissue.lattice.rows
    mask = np.zeros((lattice.rows * k, lattice.columns * k), dtype=np.bool_)
    rows, columns = (min(sides) for sides in zip(mask.shape, tissue.mask.shape, strict=True))
    mask[:rows, :columns] = tissue.mask[:rows, :columns]
    return replace(tissue, mask=mask, lattice=lattice)


def nested_grid_from_tissue(path: Path, tissue: Tissue, config: TissueConfig) -> NestedGrid:
    """Return the grids of a tissue mask. `path` names the slide in the error."""
    grid = build_nested_grid(tissue.lattice, tissue.shares(), config.min_share)
    if len(grid.lr_index) == 0:
        raise TissueError(
            path,
            f"no tissue found (needs {100 * config.min_share:.0f} % of a {tissue.lattice.hr_um:.0f} µm square); "
            "is this a stained brightfield slide?",
        )
    return grid


def _require_size(slide: Slide, plan: PatchPlan, min_share: float) -> None:
    """Raise `TissueError` if the whole slide is too small to fill the share of a patch that has to be tissue."""
    width, height, side = slide.bounds.width * slide.mpp.x, slide.bounds.height * slide.mpp.y, plan.hr_um
    if min(width, side) * min(height, side) < min_share * side**2:
        raise TissueError(
            slide.path,
            f"the slide is {slide.bounds.width} x {slide.bounds.height} px ({width:.3g} x {height:.3g} µm), less than "
            f"{min_share:.0%} of a patch of {side:.0f} µm; check the resolution, or use a larger scan",
        )


def require_resolution(slide: Slide, wanted_mpp: float, who: str) -> None:
    """Raise `ResolutionError` if level 0 of `slide` is more than 5 % coarser than `wanted_mpp`."""
    if slide.mpp.mean > wanted_mpp * (1 + MPP_TOLERANCE):
        raise ResolutionError(
            slide.path,
            f"the slide has {slide.mpp.mean:.4g} µm per pixel at best, too coarse for the {who}, which needs "
            f"{wanted_mpp:g} or finer; use a scan of higher resolution",
        )
