"""What a slide costs: steps that add up, counts that are the grid's, factors along a chain of one change each."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_lrmil.core import benchmark as costs
from napari_lrmil.core.benchmark import (
    BASELINE,
    CHAIN,
    LR,
    REFERENCE_SETUPS,
    MeasurementSpec,
    Setup,
    benchmark_json,
    speedup_factors,
    step_table,
)
from napari_lrmil.core.benchmark.measure import SAMPLE_RUN, STEPS, Measurement, measure, measure_all, sample_rows
from napari_lrmil.core.benchmark.pareto import CostPoint, cost_points, pareto_front, write_pareto
from napari_lrmil.core.benchmark.setups import HR_OPENSLIDE, HR_STUDENT, HR_TORCH, LR_TORCH
from napari_lrmil.core.benchmark.tables import factor_table
from napari_lrmil.core.benchmark.writing import prediction_to_write
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, Finished
from napari_lrmil.core.inference.network_input import student_input, teacher_input
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.mil import BagOutput
from napari_lrmil.core.patching.grid import find_nested_grid
from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide
from napari_lrmil.core.results.writer import write_prediction
from napari_lrmil.core.runtimes.select import REFERENCE
from napari_lrmil.core.slides.slide import Slide
from support.fake_slides import one_sentence
from support.networks import untrained_bundle


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> MeasurementSpec:
    """Return the specification of a measurement of a small phantom and an untrained bundle."""
    slide = write_slide(tmp_path_factory.mktemp("slide"), PhantomSlide("phantom", LESION, 5, (1536, 1024)))
    return MeasurementSpec(slide, untrained_bundle(tmp_path_factory.mktemp("bundle")).path, repeats=1)


def test_each_setup_differs_from_the_one_before_in_what_it_says() -> None:
    fields = {"encoder": "encoder", "reader": "reader", "runtime": "runtime", "resolution": "fine"}
    for before, after in pairwise(CHAIN):
        differing = {name for name in fields.values() if getattr(before, name) != getattr(after, name)}
        assert differing == {fields[after.changed]}
    assert replace(HR_OPENSLIDE, name="", fine=False) == replace(LR_TORCH, name="")


@pytest.mark.slow
@pytest.mark.parametrize("setup", [HR_TORCH, HR_OPENSLIDE, LR_TORCH, BASELINE], ids=lambda s: s.name)
def test_counts_are_those_of_the_grid(spec: MeasurementSpec, setup: Setup) -> None:
    bundle = Bundle(spec.bundle)
    with Slide(spec.slide) as slide:
        grid = find_nested_grid(slide, bundle.card.plan, bundle.card.tissue)
        at_tissue = slide.pixels_decoded
    measurement = measure(replace(spec, most_patches=64), setup)
    assert measurement.patches == (len(grid.hr_index) if setup.fine else len(grid.lr_index))
    assert measurement.sampled == min(measurement.patches, SAMPLE_RUN)
    side = bundle.card.hr_patch_px if setup.fine else bundle.card.lr_patch_px
    assert measurement.pixels - at_tissue >= measurement.patches * side**2  # a patch may straddle pixels of a level
    assert measurement.pixels - at_tissue <= 1.3 * measurement.patches * side**2
    assert set(measurement.cpu) == {*STEPS, "total"} and measurement.cpu["total"] == pytest.approx(
        sum(measurement.cpu[step] for step in STEPS)
    )
    assert measurement.cpu["write"] > 0 and measurement.analysis_cpu < measurement.cpu["total"]
    assert measurement.runtime == REFERENCE and measurement.peak_mb > 100
    assert (measurement.whole_cpu is None) is setup.fine


def test_writing_is_a_step_of_its_own_and_no_part_of_the_factors() -> None:
    measured = [measurement(HR_STUDENT, 30.0, 120), measurement(LR, 3.0, 10)]
    before = [factor.cpu for factor in speedup_factors(measured)]
    for m in measured:
        m.cpu, m.wall = (seconds | {"write": 0.5, "total": seconds["total"] + 0.5} for seconds in (m.cpu, m.wall))
    assert [factor.cpu for factor in speedup_factors(measured)] == pytest.approx(before) == [10.0]


@pytest.mark.parametrize("fine", [False, True])
def test_the_files_of_a_sample_are_as_large_as_those_of_the_slide(
    spec: MeasurementSpec, tmp_path: Path, fine: bool
) -> None:
    """A benchmark that reads a sample of the patches writes all of them."""
    bundle = Bundle(spec.bundle)
    pooled = BagOutput(np.zeros(2, np.float32), *[np.full(3, 1 / 3, np.float32)] * 2, np.ones((3, 2), np.float32))
    with Slide(spec.slide) as slide:
        grid = find_nested_grid(slide, bundle.card.plan, bundle.card.tissue)
        network_input = (teacher_input if fine else student_input)(bundle.card, grid)
        prediction = prediction_to_write(slide, bundle, grid, network_input, pooled)
        folder = write_prediction(tmp_path, slide, prediction)
    count = len(grid.hr_index) if fine else len(grid.lr_index)
    assert len(json.loads((folder / "attention.geojson").read_text())["features"]) == count > 3
    assert prediction.student.attention.sum() == pytest.approx(1) and (folder / "overlay.png").is_file()


def test_operations_are_counted_as_they_are(spec: MeasurementSpec) -> None:
    """The same encoder needs the same for a patch of the same size, at either resolution; ResNet-50 needs 4.1 G MAC."""
    fine, coarse = measure(spec, HR_TORCH), measure(spec, LR_TORCH)
    card = Bundle(spec.bundle).card
    per_pixel = [m.flops / m.patches / px**2 for m, px in ((fine, card.hr_patch_px), (coarse, card.lr_patch_px))]
    assert per_pixel[0] == pytest.approx(per_pixel[1], rel=0.05)
    from torch.utils.flop_counter import FlopCounterMode

    from napari_lrmil.core.benchmark.baseline import ResNetEmbedder

    with FlopCounterMode(display=False) as counted:
        embedding = ResNetEmbedder()(torch.zeros((1, 3, 224, 224), dtype=torch.uint8)).embedding
    assert embedding.shape == (1, 2048)
    assert counted.get_total_flops() == pytest.approx(2 * 4.1e9, rel=0.02)


def test_the_baseline_reads_what_we_read(spec: MeasurementSpec) -> None:
    """Where a level has the wanted resolution, PIL's patches are ours: the baseline does the same work."""
    from napari_lrmil.core.benchmark.baseline import PilReader
    from napari_lrmil.core.features.extraction import PatchSet

    bundle = Bundle(spec.bundle)
    with Slide(spec.slide, reader="openslide") as slide:
        grid = find_nested_grid(slide, bundle.card.plan, bundle.card.tissue)
        patches = PatchSet(grid.hr_corners[:6], grid.lattice.cell, bundle.card.hr_patch_px)
        reader = PilReader(slide, patches)
        theirs, ours = reader.read(slice(None)), patches.read(slide, slice(None))
        reader.close()
    assert theirs.shape == ours.shape and np.abs(theirs.astype(int) - ours.astype(int)).mean() < 2
    assert reader.pixels_decoded >= len(theirs) * patches.patch_px**2


def test_a_sample_is_runs_of_neighbours_spread_evenly() -> None:
    assert (sample_rows(50, 64) == np.arange(50)).all()
    rows = sample_rows(10_000, 640)
    assert len(rows) == 640 and rows[0] == 0 and rows[-1] == 9999
    assert (np.diff(rows) == 1).sum() == 640 - 10 and len(set(np.diff(rows)[np.diff(rows) > 1])) <= 2


def measurement(setup: Setup, cpu: float, patches: int) -> Measurement:
    return Measurement(
        setup, {"total": cpu}, {"total": cpu / 2}, patches, patches, 1, None, 1.0, 1.0, "tiles", REFERENCE
    )


def test_factors_multiply_along_the_chain() -> None:
    seconds = dict(zip(CHAIN, (600.0, 60.0, 50.0, 15.0, 1.5), strict=True)) | dict(
        zip(REFERENCE_SETUPS, (70.0, 7.0), strict=True)
    )
    measurements = [measurement(setup, cpu, 120 if setup.fine else 10) for setup, cpu in seconds.items()]
    factors = speedup_factors(measurements)
    along = [f for f in factors if f.changed != "everything" and f.before != HR_OPENSLIDE.name]
    assert np.prod([f.cpu for f in along]) == pytest.approx(factors[-1].cpu) == 400
    assert [f.changed for f in along] == ["encoder", "reader", "runtime", "resolution"]
    assert costs.resolution_shares(measurements) == pytest.approx([10 / 12, 10 / 12])
    assert [f.changed for f in speedup_factors([measurement(HR_STUDENT, 15, 120), measurement(LR, 1.5, 10)])] == [
        "resolution"
    ]
    assert "| 400.0 times |" in factor_table(measurements)


def test_what_was_measured_is_json_and_a_table(spec: MeasurementSpec) -> None:
    measurements = [measure(spec, LR_TORCH)]
    written = json.loads(json.dumps(benchmark_json(spec, measurements)))
    assert written["setups"][0]["patches"] == measurements[0].patches and written["slide"] == str(spec.slide)
    assert written["setups"][0]["cpu"]["encode"] > 0 and written["processor"]
    assert f"| {LR_TORCH.name} | {measurements[0].patches} |" in step_table(measurements)


@pytest.mark.slow
def test_each_setup_has_a_process_of_its_own(spec: MeasurementSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one's memory is not another's; and where it dies, that is one sentence."""
    events: list[Event] = list(measure_all(spec, [LR_TORCH]))
    assert isinstance(events[-1], Finished)
    assert events[-1].result[0].patches > 0
    monkeypatch.setattr(costs.measure, "_measure_for_parent", _die)
    with pytest.raises(
        LrmilError, match=r"the process that measured .* ended with code 9, as when the memory"
    ) as caught:
        list(measure_all(spec, [LR_TORCH]))
    assert one_sentence(caught.value)


@pytest.mark.slow
def test_what_is_wrong_with_a_slide_is_told_as_it_is(spec: MeasurementSpec, tmp_path: Path) -> None:
    (tmp_path / "text.svs").write_text("no slide")
    with pytest.raises(LrmilError, match=r"text\.svs") as caught:
        list(measure_all(replace(spec, slide=tmp_path / "text.svs"), [LR_TORCH]))
    assert one_sentence(caught.value) and "memory" not in str(caught.value)


def _die(*_: object) -> None:
    os._exit(9)


# ---------------------------------------------------------------- AUROC against cost


def test_the_front_is_what_nobody_beats_in_both(tmp_path: Path) -> None:
    figures = {"a": (0.9, 1.0), "b": (0.8, 2.0), "c": (0.95, 10.0), "d": (0.95, 20.0)}
    points = [CostPoint(name, auroc, auroc - 0.05, None, cpu, 12) for name, (auroc, cpu) in figures.items()]
    assert [p.name for p in pareto_front(points)] == ["a", "c"]
    write_pareto(tmp_path, points)
    assert json.loads((tmp_path / "pareto.json").read_text())["front"] == ["a", "c"]
    assert (tmp_path / "pareto.png").stat().st_size > 10_000


def test_points_come_from_an_evaluation(tmp_path: Path) -> None:
    auroc = {"value": 0.75, "low": None, "high": None, "n_slides": 4}
    cost = {"cpu_seconds_per_slide": 1.5}
    undefined = {"auroc": auroc | {"value": None}, "cost": cost}
    path = tmp_path / "metrics.json"
    networks = {"student": {"all": {"auroc": auroc, "cost": cost}}, "teacher": {"all": undefined}}
    groups = {"scanner": {"A": {"student": {"auroc": auroc}}}}
    path.write_text(json.dumps(networks | {"by": groups}))
    assert cost_points("m", path) == [CostPoint("m, student", 0.75, None, None, 1.5, 4)]
