"""LR features of stored HR patches: every LR row stands for the children that the teacher saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lrmil_training.data.cohort import CohortSlide
from lrmil_training.data.features import FeatureRequest, make_features
from napari_lrmil.core.features.bag import read_bag
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.patching.grid import NestedGrid, find_nested_grid, nested_grid_from_cells
from support.networks import untrained_encoder

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
