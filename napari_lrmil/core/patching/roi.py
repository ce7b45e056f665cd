"""Region of interest of a prediction: the whole slide, the visible area or drawn regions, less excluded areas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.errors import TissueError
from napari_lrmil.core.geometry import Bounds
from napari_lrmil.core.patching.grid import NestedGrid, TissueGrid
from napari_lrmil.core.patching.placement import (
    exclusion_warnings,
    place_regions,
    placement_warnings,
    why_nowhere,
)
from napari_lrmil.core.patching.regions import Region, patches_in_regions, read_regions

Kind = Literal["slide", "view", "region"]
WORDS: dict[Kind, str] = {"slide": "whole slide", "view": "visible region", "region": "drawn region"}


@dataclass(frozen=True)
class RegionOfInterest:
    """Part of a slide that a prediction covers.

    Attributes
    ----------
    kind
        The whole slide, the visible area, or drawn regions.
    regions
        Regions to predict, in level-0 pixels; empty for the whole slide.
    included
        If not empty, everything outside these regions is left out.
    excluded
        Regions to leave out, such as a pen mark, a fold or an artefact.
    edited
        Whether the tissue mask was edited by hand.
    warnings
        Sentences on the files that the regions were read from.
    """

    kind: Kind = "slide"
    regions: tuple[Region, ...] = ()
    included: tuple[Region, ...] = ()
    excluded: tuple[Region, ...] = ()
    edited: bool = False
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.kind == "slide") != (not self.regions):
            raise ValueError(f"a prediction of the {WORDS[self.kind]} with {len(self.regions)} regions")

    @property
    def is_whole_slide(self) -> bool:
        """Whether this is the whole, unedited slide, for which models are calibrated."""
        return self.kind == "slide" and not (self.included or self.excluded or self.edited)

    @property
    def text(self) -> str:
        """Description in words, as ``prediction.json`` stores it."""
        base = f"{len(self.regions)} drawn regions" if len(self.regions) > 1 else WORDS[self.kind]
        parts = [
            ", only what was kept" if self.included else "",
            f", without {len(self.excluded)} excluded" if self.excluded else "",
            ", tissue edited" if self.edited else "",
        ]
        return base + "".join(parts)

    @property
    def files(self) -> dict[str, tuple[Region, ...]]:
        """Option of the command line -> regions to pass for the same prediction."""
        by_option = {"roi": self.regions, "keep": self.included, "exclude": self.excluded}
        return {name: regions for name, regions in by_option.items() if regions}

    def select(self, tissue_grid: TissueGrid) -> Selection:
        """Return the LR patches of a slide that belong to the region of interest, and what to know about them."""
        grid = tissue_grid.grid
        is_selected = np.ones(len(grid.lr_index), dtype=np.bool_)
        warnings: list[str] = []
        for regions, name in ((self.regions, WORDS[self.kind]), (self.included, "kept region")):
            if regions:
                placement = place_regions(tissue_grid, regions)
                is_selected &= placement.is_selected
                is_view = self.kind == "view" and regions is self.regions
                warnings += placement_warnings(placement, name, may_reach_beyond=is_view)
        if self.excluded:
            is_excluded = patches_in_regions(grid.lr_corners, grid.lattice.lr_cell, self.excluded)
            is_selected &= ~is_excluded
            warnings += exclusion_warnings(tissue_grid, self.excluded, is_excluded)
        return Selection(is_selected, tuple(warnings))

    def of(self, tissue_grid: TissueGrid, slide: Path) -> tuple[NestedGrid, tuple[str, ...]]:
        """Return the part of a slide's grid that belongs to the region of interest, and what to know about it.

        Raises
        ------
        TissueError
            If no patch is left. `slide` names the file.
        """
        selection = self.select(tissue_grid)
        if not selection.is_selected.any():
            holds = "hold" if len(self.regions) > 1 else "holds"
            raise TissueError(slide, f"the {self.text} {holds} no LR patch: {self.emptied_by(tissue_grid)}")
        grid = tissue_grid.grid
        part = grid if selection.is_selected.all() else grid.select(selection.is_selected)
        return part, selection.warnings

    def emptied_by(self, tissue_grid: TissueGrid) -> str:
        """Return why no patch is selected, and what to do about it."""
        for regions in filter(None, (self.regions, self.included)):
            placement = place_regions(tissue_grid, regions)
            if not placement.is_selected.any():
                return why_nowhere(placement, regions, tissue_grid.grid.lattice.box)
        if self.excluded:
            return "everything in it is excluded; choose a part with tissue"
        return "no patch of it belongs to what was kept; choose parts that overlap"


@dataclass(frozen=True, eq=False)  # compared by identity, as comparing the arrays would be slow
class Selection:
    """LR patches of a slide that belong to a region of interest.

    Attributes
    ----------
    is_selected
        (N,) whether a patch belongs.
    warnings
        Sentences on regions that are answered only roughly, or not at all.
    """

    is_selected: NDArray[np.bool_]
    warnings: tuple[str, ...]


WHOLE_SLIDE = RegionOfInterest()


def read_scope(files: Mapping[str, Path | None], bounds: Bounds) -> RegionOfInterest:
    """Return the region of interest from files of regions. Keys are those of `RegionOfInterest.files`.

    Raises
    ------
    RegionError
        If a file contains no regions.
    """
    read = {name: read_regions(file, bounds) for name, file in files.items() if file is not None}
    regions = {name: file.regions for name, file in read.items()}
    return RegionOfInterest(
        "region" if "roi" in regions else "slide",
        regions.get("roi", ()),
        regions.get("keep", ()),
        regions.get("exclude", ()),
        warnings=tuple(warning for file in read.values() for warning in file.warnings),
    )
