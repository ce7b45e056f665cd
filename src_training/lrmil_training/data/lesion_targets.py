"""Patch targets of the patch term (`TrainConfig.lambda_patch`): class shares of patches, from outlines beside slides.

An outline speaks for the class that it names, otherwise for the class of its slide. Tissue outside all outlines counts
as the first class. Slides of the first class need no outlines; other slides without outlines teach nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import shapely
import torch
from torch import Tensor

from lrmil_training.data.cohort import Cohort, CohortSlide
from napari_lrmil.core.errors import CohortError, SlideError
from napari_lrmil.core.geometry import Bounds
from napari_lrmil.core.inference.teacher_comparison import read_lesions
from napari_lrmil.core.patching.grid import NestedGrid
from napari_lrmil.core.patching.outlines import Area
from napari_lrmil.core.patching.overlaps import overlap_areas
from napari_lrmil.core.patching.regions import Region, patch_boxes, union_of
from napari_lrmil.core.slides.slide import Slide

LEVEL0_ORIGIN = Bounds(0, 0, 0, 0)  # files beside slides do not count from the corner of the scanned area
FITTED_SPLITS = ("train", "val")  # test slides must not influence a fit
OUTSIDE = 0  # class of the tissue outside all outlines
COUNTS = "outlines teach patches"  # begins the sentence that the report looks for
NO_EFFECT = "lambda_patch has no effect: no outlines lie beside the slides"

ClassAreas = Mapping[int, Area]  # class -> area in level-0 pixels; without the class `OUTSIDE`


class LesionTargets:
    """Outlines of the training and validation slides of a cohort, and the patch targets that follow from them.

    Parameters
    ----------
    cohort
        The slides; files of outlines are read now.

    Raises
    ------
    CohortError
        If an outline on a slide of the first class names no other class.
    RegionError
        If a file of outlines cannot be read.
    """

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort
        slides = [slide for split in FITTED_SPLITS for slide in cohort.of(split)]
        by_slide = {slide.name: _areas_by_class(slide, cohort) for slide in slides}
        self._areas = {name: areas for name, areas in by_slide.items() if areas}
        self._targets: dict[tuple[str, bool], Tensor] = {}  # areas are intersected once for all fits of a run

    @property
    def can_teach(self) -> bool:
        """Whether any training slide has an outline."""
        return any(slide.name in self._areas for slide in self.cohort.of("train"))

    @property
    def outlined(self) -> tuple[str, ...]:
        """Names of the training and validation slides with outlines."""
        return tuple(self._areas)

    @property
    def fingerprint(self) -> str:
        """Hash of all areas, which the result of a fit depends on."""
        digest = hashlib.sha256()
        for name in sorted(self._areas):
            for c, area in sorted(self._areas[name].items()):
                digest.update(f"{name}\0{c}\0{area.wkb_hex}\0".encode())
        return digest.hexdigest()

    def of(self, row: CohortSlide, grid: NestedGrid, *, high: bool) -> Tensor:
        """Return (N, C) class shares of a slide's patches, rows sum to 1; (0, C) if the slide teaches nothing.

        Parameters
        ----------
        row, grid
            The slide and its nested grids.
        high
            Whether the patches are those of HR.
        """
        key = (row.name, high)
        if key not in self._targets:
            self._targets[key] = self._compute(row, grid, high=high)
        return self._targets[key]

    def _compute(self, row: CohortSlide, grid: NestedGrid, *, high: bool) -> Tensor:
        classes, areas = len(self.cohort.classes), self._areas.get(row.name)
        corners, size = (grid.hr_corners, grid.hr_size) if high else (grid.lr_corners, grid.lattice.lr_cell)
        if areas is None and self.cohort.target(row) != OUTSIDE:
            return torch.empty(0, classes)
        shares = np.zeros((len(corners), classes))
        for c, area in (areas or {}).items():
            shares[:, c] = overlap_areas(patch_boxes(corners, size), area) / (size[0] * size[1])
        # Outlines of two classes can overlap; without that the sum exceeds 1 by rounding alone.
        shares /= np.maximum(1.0, shares.sum(axis=1, keepdims=True))
        shares[:, OUTSIDE] = np.clip(1.0 - shares.sum(axis=1), 0.0, 1.0)
        return torch.from_numpy(shares.astype(np.float32))

    def describe(self, grids: Mapping[str, NestedGrid], *, high: bool) -> list[str]:
        """Return sentences on the outlines: their slides and patches, and outlines that meet no patch.

        Parameters
        ----------
        grids
            Slide name -> grids, of all training and validation slides.
        high
            Whether patches of HR are counted too.
        """
        train = [s for s in self.cohort.of("train") if s.name in grids]
        counts = [self._count(train, grids, high=side) for side in ((True, False) if high else (False,))]
        outlined = sum(s.name in self._areas for s in train)
        taught = sum(s.name in self._areas or self.cohort.target(s) == OUTSIDE for s in train)
        sentence = (
            f"{COUNTS}: {outlined} of {len(train)} training slides have outlines, {taught} count; "
            f"{', '.join(counts)} meet an outline; tissue outside counts as {self.cohort.classes[OUTSIDE]}"
        )
        missed = [
            f"{s.lesions.name}: no patch with tissue meets its outlines; they may be of another slide"
            for split in FITTED_SPLITS
            for s in self.cohort.of(split)
            if s.name in grids and s.name in self._areas and not self._n_in_lesions(s, grids[s.name], high=False)
        ]
        return [sentence, *missed]

    def _count(self, slides: Sequence[CohortSlide], grids: Mapping[str, NestedGrid], *, high: bool) -> str:
        total = sum(len(grids[s.name].hr_index if high else grids[s.name].lr_index) for s in slides)
        inside = sum(self._n_in_lesions(s, grids[s.name], high=high) for s in slides)
        return f"{inside:,} of {total:,} {'HR' if high else 'LR'} patches"

    def _n_in_lesions(self, row: CohortSlide, grid: NestedGrid, *, high: bool) -> int:
        return int((self.of(row, grid, high=high)[:, OUTSIDE] < 1).sum())


def _areas_by_class(row: CohortSlide, cohort: Cohort) -> dict[int, Area]:
    """Return the area of each class but the first; outlines that name the first are cut out of the others."""
    by_class: dict[int, list[Region]] = {}
    for region in read_lesions(row.path, LEVEL0_ORIGIN).regions:
        by_class.setdefault(_class_of(region, row, cohort), []).append(region)
    outside = by_class.pop(OUTSIDE, [])
    areas: dict[int, Any] = {c: union_of(regions) for c, regions in by_class.items()}
    if outside:
        areas = {c: shapely.difference(area, union_of(outside)) for c, area in areas.items()}
    return {c: area for c, area in areas.items() if area.area > 0}


def _class_of(region: Region, row: CohortSlide, cohort: Cohort) -> int:
    names = [name.casefold() for name in cohort.classes]
    if region.name.strip().casefold() in names:
        return names.index(region.name.strip().casefold())
    target = cohort.target(row)
    if target == OUTSIDE:
        raise CohortError(
            row.lesions,
            f"the outline '{region.name}' is on a slide of {row.label}, the class of tissue outside outlines; name the "
            f"outline after a class ({', '.join(cohort.classes)}), correct the label, or set lambda_patch=0",
        )
    return target


def require_outlines_on_slides(cohort: Cohort) -> None:
    """Open the slides with outlines and raise `CohortError` if outlines lie outside; see `outline_problem`.

    Slides that cannot be opened are passed over: the extraction of features reports them.
    """
    for split in FITTED_SPLITS:
        for row in cohort.of(split):
            if not row.lesions.exists():
                continue
            try:
                with row.open() as slide:
                    problem = outline_problem(row, slide)
            except SlideError:
                continue
            if problem:
                raise CohortError(
                    row.lesions.parent, f"{problem}; correct the file, move it away, or set lambda_patch=0"
                )


def outline_problem(row: CohortSlide, slide: Slide) -> str:
    """Return a sentence if outlines lie outside the slide: they are of another slide, or at another scale."""
    regions = read_lesions(row.path, LEVEL0_ORIGIN).regions
    if not regions:
        return ""
    boxes = np.array([shapely.bounds(region.geometry) for region in regions])
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    width, height = slide.width, slide.height
    if (low >= -1).all() and high[0] <= width + 1 and high[1] <= height + 1:
        return ""
    return (
        f"{row.lesions.name}: outlines reach from {low[0]:.0f}, {low[1]:.0f} to {high[0]:.0f}, {high[1]:.0f}, outside "
        f"the slide of {width} x {height} px; they are of another slide"
    )
