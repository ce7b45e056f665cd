"""LR features of stored HR patches: every LR row stands for the children that the teacher saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lrmil_training.data.cohort import CohortSlide
from lrmil_training.data.features import FeatureRequest, make_features
from napari_lrmil.core.events import Failed, Notice
from napari_lrmil.core.features.bag import read_bag
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.patching.grid import NestedGrid, find_nested_grid, nested_grid_from_cells
from support.jpeg_slides import damaged, write_jpeg_slide
from support.networks import untrained_encoder
from support.tile_slides import rectangle, tile

CPU = torch.device("cpu")


def coords_after(row: CohortSlide, request: FeatureRequest, grid: NestedGrid) -> np.ndarray:
    """Return the coordinates of the features that lie there afterwards."""
    list(make_features([row], request, CPU, {row.name: grid}))
    return read_bag(request.path(row)).coords


def test_lr_patches_are_the_parents_of_known_hr_patches(phantoms: Path, tmp_path: Path) -> None:
    """Whatever the mask would say now; features of other patches are made again, of the same ones they are kept."""
    row = CohortSlide(next(phantoms.parent.glob("train*.tif")), "p", "normal", "train")
    plan = PatchPlan(0.5, 1.0, 64, 64)
    request = FeatureRequest(untrained_encoder(), "e", "0" * 64, plan, high=False, folder=tmp_path / "features")
    with row.open() as slide:
        whole = find_nested_grid(slide, plan)
    part = nested_grid_from_cells(whole.lattice, whole.hr_index[whole.hr_index[:, 0] < 7])
    assert 0 < len(part.lr_index) < len(whole.lr_index)
    np.testing.assert_array_equal(coords_after(row, request, part), part.lr_corners)
    before = request.path(row).stat().st_mtime_ns
    np.testing.assert_array_equal(coords_after(row, request, part), part.lr_corners)
    assert request.path(row).stat().st_mtime_ns == before
    np.testing.assert_array_equal(coords_after(row, request, whole), whole.lr_corners)


@pytest.mark.parametrize("high", [True, False])
def test_slides_that_lack_much_tissue_are_refused_and_others_told(tmp_path: Path, high: bool) -> None:
    """A damaged tile is told once the patches are read."""
    half = write_jpeg_slide(tmp_path / "half.tif", rectangle(), empty=[tile(c, r) for r in (2, 3) for c in range(1, 7)])
    few = damaged(write_jpeg_slide(tmp_path / "few.tif", rectangle()), tile(3, 2), at=0.3)
    request = FeatureRequest(
        untrained_encoder(), "e", "0" * 64, PatchPlan(0.5, 2.0, 64, 64), high, tmp_path / "features"
    )
    events = list(make_features([CohortSlide(path, "p", "l", "train") for path in (half, few)], request, CPU))
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert failed.subject == "half" and "hide 48 % of the tissue" in failed.message
    (told,) = [event for event in events if isinstance(event, Notice)]
    assert told.subject == "few" and "1 tile damaged" in told.message
