"""Stain colour in the bundle of a run, also with slides that cannot be opened any more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lrmil_training.data.cohort import CohortSlide
from lrmil_training.evaluation.evaluate import SlideResult
from lrmil_training.stages.export import summary, training_colour
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.patching.color import FEWEST_SLIDES, color_stats
from napari_lrmil.core.patching.grid import find_nested_grid
from support.fake_slides import speckled, write_tiff

PLAN = PatchPlan(0.5, 2.0, 64, 64)
NOTHING = np.zeros(0, np.float32)


def made_result(folder: Path, number: int, split: str) -> SlideResult:
    path = write_tiff(folder / f"{split}{number}.tif", speckled(600, 400, number), (1.0, 4.0), (0.5, 0.5))
    row = CohortSlide(path, f"p{number}", "normal", split)
    with row.open() as slide:
        return SlideResult(row, find_nested_grid(slide, PLAN), NOTHING, NOTHING, False, 0, 0.0)


@pytest.fixture
def results(tmp_path: Path) -> list[SlideResult]:
    return [made_result(tmp_path, i, "train") for i in range(FEWEST_SLIDES + 1)] + [made_result(tmp_path, 50, "test")]


def test_the_colour_is_that_of_the_training_slides_alone(results: list[SlideResult]) -> None:
    colour = training_colour(results)
    assert colour is not None and colour.slides == FEWEST_SLIDES + 1
    stats = []
    for result in results[:-1]:
        with result.row.open() as slide:
            stats.append(color_stats(slide, result.grid).mean)
    np.testing.assert_allclose(colour.mean, np.mean(stats, axis=0), atol=1e-9)


def test_slides_that_are_gone_since_cost_no_bundle(results: list[SlideResult]) -> None:
    results[2].row.path.unlink()
    colour = training_colour(results)
    assert colour is not None and colour.slides == FEWEST_SLIDES
    results[3].row.path.unlink()
    assert training_colour(results) is None


@pytest.mark.parametrize(
    ("value", "low", "n_slides", "span", "end"),
    [
        (1.0, 1.0, 8, "1.000 (no spread in the resamples: 8 slides are too few for an interval)", ""),
        (0.0, 0.0, 8, "0.000 (no spread in the resamples: 8 slides are too few for an interval)", ""),
        (1.0, 0.5, 8, "1.000 (0.500 to 1.000)", ", interval over patients"),
        (0.9, 0.9, 8, "0.900 (0.900 to 0.900)", ", interval over patients"),
        (
            1.0,
            1.0,
            40,
            "1.000 (1.000 to 1.000)",
            ", interval over patients, no spread in the resamples of 40 slides",
        ),
    ],
)
def test_the_card_states_no_interval_without_spread(
    value: float, low: float, n_slides: int, span: str, end: str
) -> None:
    auroc = {"value": value, "low": low, "high": value, "n_slides": n_slides, "n_patients": n_slides}
    metrics = {"student": {"test": {"auroc": auroc | {"interval": "patients"}}}}
    assert summary(metrics) == {"student, test: AUROC": f"{span}, {n_slides} slides of {n_slides} patients{end}"}
