"""The patch term (`lambda_patch`): targets from outlines, the classes they speak for, bad files, what is learned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lrmil_training.config import TeacherConfig, TrainConfig, build_config
from lrmil_training.data.bags import BagItem
from lrmil_training.data.cohort import Cohort, read_cohort
from lrmil_training.data.lesion_targets import NO_EFFECT, LesionTargets
from lrmil_training.dry_run import dry_run
from lrmil_training.losses import patch_cross_entropy
from lrmil_training.stages.bag_fitting import patch_terms, seeded_mil
from lrmil_training.stages.methods import list_methods
from lrmil_training.train import train
from napari_lrmil.core.errors import CohortError
from napari_lrmil.core.events import Finished, Notice
from napari_lrmil.core.geometry import Lattice, Mpp
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.patching.grid import NestedGrid, nested_grid_from_cells
from support.phantoms import copy_cohort
from support.run_folders import synthetic_cohort
from support.trained import Trained

CPU = torch.device("cpu")
CLASSES = ("normal", "grade1", "grade2")
ROW = 2  # the first slide of grade1 of `synthetic_cohort`


def write_outlines(slide: Path, *boxes: tuple[str, float, float, float, float]) -> None:
    """Write boxes (name, left, top, right, bottom) as the outlines of a slide."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[[x, y], [u, y], [u, v], [x, v], [x, y]]]},
            "properties": {"classification": {"name": name}},
        }
        for name, x, y, u, v in boxes
    ]
    file = slide.with_name(f"{slide.stem}_lesions.geojson")
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def grid_of_two() -> NestedGrid:
    """Return two LR patches of 200 px side by side, each with four HR patches of 100 px."""
    lattice = Lattice((0, 0), (100, 100), 4, 2, 2, Mpp(0.5, 0.5, "test"))
    return nested_grid_from_cells(lattice, torch.cartesian_prod(torch.arange(4), torch.arange(2)).numpy())


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    return synthetic_cohort(tmp_path, {"train": 6, "val": 6}, CLASSES)


def shares(cohort: Cohort, row: int, *, high: bool = False) -> list[list[float]]:
    values: list[list[float]] = LesionTargets(cohort).of(cohort.slides[row], grid_of_two(), high=high).tolist()
    return values


def test_shares_are_areas(cohort: Cohort) -> None:
    """By hand: 150 x 200 px over a patch of 200 x 200 px; of its HR patches the left ones whole, the others half."""
    write_outlines(cohort.slides[ROW].path, ("Tumour", 0, 0, 150, 200))
    assert shares(cohort, ROW) == [[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]]
    high = LesionTargets(cohort).of(cohort.slides[ROW], grid_of_two(), high=True)
    by_corner = dict(zip(map(tuple, grid_of_two().hr_corners.tolist()), high[:, 1].tolist(), strict=True))
    assert by_corner[0, 0] == 1.0 and by_corner[100, 0] == 0.5 and by_corner[200, 100] == 0.0


def test_an_outline_that_names_a_class_speaks_for_it(cohort: Cohort) -> None:
    """Others speak for the slide's; one of the first class is a hole; where two overlap, each counts its part."""
    boxes = [("Grade2 ", 0, 0, 100, 200), ("area", 100, 0, 200, 200), ("normal", 150, 0, 200, 200)]
    write_outlines(cohort.slides[ROW].path, *boxes)
    assert shares(cohort, ROW)[0] == [0.25, 0.25, 0.5]
    write_outlines(cohort.slides[ROW].path, ("grade1", 0, 0, 200, 200), ("grade2", 0, 0, 200, 200))
    assert shares(cohort, ROW)[0] == [0.0, 0.5, 0.5]


def test_without_outlines_the_first_class_alone_teaches(cohort: Cohort) -> None:
    """An empty file on a slide with lesions teaches nothing; the slide itself would contradict it."""
    assert shares(cohort, 0) == [[1.0, 0.0, 0.0]] * 2
    assert shares(cohort, ROW) == []
    write_outlines(cohort.slides[ROW].path)
    assert shares(cohort, ROW) == [] and not LesionTargets(cohort).can_teach


def test_another_outline_is_another_fit(cohort: Cohort) -> None:
    prints = {LesionTargets(cohort).fingerprint}
    for right in (100, 101):
        write_outlines(cohort.slides[ROW].path, ("area", 0, 0, right, 200))
        prints.add(LesionTargets(cohort).fingerprint)
    assert len(prints) == 3


def test_an_outline_that_contradicts_its_slide_is_refused(cohort: Cohort) -> None:
    write_outlines(cohort.slides[0].path, ("area", 0, 0, 100, 100))
    with pytest.raises(CohortError, match="'area' is on a slide of normal, the class of tissue outside outlines; "):
        LesionTargets(cohort)


def test_counts_and_outlines_on_glass_are_reported(cohort: Cohort) -> None:
    write_outlines(cohort.slides[ROW].path, ("area", 0, 0, 150, 200))
    write_outlines(cohort.slides[ROW + 1].path, ("area", 900, 900, 950, 950))
    sentence, missed = LesionTargets(cohort).describe({s.name: grid_of_two() for s in cohort.slides}, high=True)
    assert sentence == (
        "outlines teach patches: 2 of 6 training slides have outlines, 4 count; 4 of 48 HR patches, 1 of 12 LR patches "
        "meet an outline; tissue outside counts as normal"
    )
    assert missed.startswith("train_03_lesions.geojson: no patch with tissue meets its outlines")


# ---------------------------------------------------------------- the term


@pytest.mark.parametrize("aggregator", ["gated_attention", "linear_topk"])
def test_the_term_is_the_cross_entropy_of_single_patches(aggregator: str) -> None:
    """Of the logits that a bag of the patch alone has, for both aggregators; subsets take their rows."""
    mil = seeded_mil(5, 3, TeacherConfig(aggregator=aggregator), 1)  # type: ignore[arg-type]
    instances, targets = torch.randn(4, 5), torch.softmax(torch.randn(4, 3), dim=1)
    item = BagItem(instances, 1, patch_targets=targets, lambda_patch=0.5).subset(torch.tensor([3, 1]))
    terms = patch_terms(mil, item.instances, item)
    logits = torch.stack([mil(instances[[r]]).logits for r in (3, 1)])
    expected = -(targets[[3, 1]] * torch.log_softmax(logits, dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(terms["patch"], 0.5 * expected)


def test_a_slide_without_targets_has_a_term_of_zero() -> None:
    """Weight 0 has no term at all."""
    logits = torch.randn(4, 2, requires_grad=True)
    assert patch_cross_entropy(logits, torch.empty(0, 2)).item() == 0.0
    mil = seeded_mil(5, 2, TeacherConfig(), 1)
    assert patch_terms(mil, torch.randn(4, 5), BagItem(torch.empty(0), 1, lambda_patch=1.0))["patch"].item() == 0.0
    assert patch_terms(mil, torch.randn(4, 5), BagItem(torch.empty(0), 1, patch_targets=torch.ones(4, 2) / 2)) == {}


def _weights(config: TrainConfig) -> dict[str, list[float]]:
    """Return method -> weights of the patch term in its stages."""
    return {
        method.name: [stage.lambda_patch for stage in method.stages if hasattr(stage, "lambda_patch")]
        for method in list_methods(config)
    }


def test_no_method_sees_more_than_another() -> None:
    """Student, both labels-only baselines and a student without a teacher; the ablation has a row without the term."""
    names = ("labels_only", "labels_only_finetuned")
    weights = _weights(build_config({"lambda_patch": 0.5, "baselines": names, "ablation": True}))
    assert weights["student"] == [0.5, 0.5] and weights["without_patch"] == [0.0, 0.0]
    assert weights["labels_only"] == weights["labels_only_finetuned"] == [0.5]
    alone = _weights(build_config({"lambda_patch": 0.5, "distil": False, "ablation": True}))
    assert alone == {"student": [0.5], "labels_only": [0.5], "without_patch": [0.0]}
    assert "without_patch" not in _weights(build_config({"ablation": True}))


# ---------------------------------------------------------------- runs


SHORT: dict[str, Any] = {
    "hr_patch_px": 64,
    "lr_patch_px": 64,
    "bootstrap": 100,
    "teacher": {"epochs": 10, "min_epochs": 10},
    "stage1": {"epochs": 0},
    "stage2": {"init": "frozen_head"},
    "stage3": {"epochs": 0},
    "baselines": [],
}


@pytest.fixture(scope="module")
def few(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the table of four training slides, two with lesions."""
    return copy_cohort(phantoms, tmp_path_factory.mktemp("cohort"), train=4, val=2, test=4)


def _train(table: Path, out: Path, trained: Trained, **changes: Any) -> Sequence[str]:
    """Train into a folder and return the notices."""
    features = out.parent / "features"
    if not features.exists():
        trained.copy_features(features)
    values = SHORT | {"encoder": {"teacher": trained.encoder}, "features": str(features)} | changes
    events = list(train(table, out, build_config(values), CPU))
    assert events[-1] == Finished(out)
    return [event.message for event in events if isinstance(event, Notice)]


def _lesion_auroc(run: Path) -> float:
    value: float = json.loads((run / "metrics.json").read_text())["teacher"]["test"]["lesion_auroc"]
    return value


def test_outlines_teach_a_teacher_of_few_slides(few: Path, trained: Trained, tmp_path: Path) -> None:
    """Two slides with lesions: the teacher's attention finds those of unseen slides better. Log and card say so."""
    _train(few, tmp_path / "without", trained)
    notices = _train(few, tmp_path / "with", trained, lambda_patch=4.0)
    assert _lesion_auroc(tmp_path / "with") > _lesion_auroc(tmp_path / "without") + 0.05
    (counts,) = [text for text in notices if text.startswith("outlines teach patches: 2 of 4 training slides")]
    card = Bundle(tmp_path / "with" / "bundle").card
    assert card.cohort["outlines (lambda_patch 4)"] == counts
    assert not [key for key in Bundle(tmp_path / "without" / "bundle").card.cohort if "outlines" in key]


def test_every_stage_has_the_term(few: Path, trained: Trained, tmp_path: Path) -> None:
    """Teacher, three stages and both baselines log it; the report counts slides and patches."""
    short = {"epochs": 1, "min_epochs": 1}
    stages = {
        "teacher": short,
        "stage1": {"epochs": 1, "patches_per_slide": 4},
        "stage2": short,
        "stage3": short | {"patches_per_slide": 4, "lr": [1e-4]},
    }
    baselines = ["labels_only", "labels_only_finetuned"]
    _train(few, tmp_path / "run", trained, lambda_patch=1.0, baselines=baselines, ablation=True, **stages)
    lines = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    logged = {line["stage"] for line in lines if line.get("name") == "train/patch"}
    assert logged == {"teacher", "stage1", "stage2", "stage3", "labels_only", "finetuned"}
    assert "without_patch" in json.loads((tmp_path / "run" / "metrics.json").read_text())
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Outlines teach patches: 2 of 4 training slides have outlines, 4 count;" in page


def test_without_outlines_the_term_is_off(few: Path, trained: Trained, tmp_path: Path) -> None:
    """The run says so and gives the very numbers of a run without the term."""
    table = copy_cohort(few, tmp_path / "bare", train=4, val=2, test=4)
    for file in table.parent.glob("*_lesions.geojson"):
        file.unlink()
    assert NO_EFFECT in _train(table, tmp_path / "on", trained, lambda_patch=1.0)
    _train(table, tmp_path / "off", trained)
    first, second = (json.loads((tmp_path / name / "bundle" / "lrmil.json").read_text()) for name in ("on", "off"))
    assert first["hashes"] == second["hashes"]


def test_outlines_outside_the_slide_are_refused_before_training(few: Path, trained: Trained, tmp_path: Path) -> None:
    table = copy_cohort(few, tmp_path / "moved", train=4, val=2)
    slide = next(row.path for row in read_cohort(table).of("train") if row.label == "lesion")
    write_outlines(slide, ("area", 5000, 0, 5100, 100))
    with pytest.raises(CohortError, match=r"outlines reach from 5000, 0 to 5100, 100, outside the slide of .* correct"):
        _train(table, tmp_path / "run", trained, lambda_patch=1.0)
    assert not (tmp_path / "run").exists()
    config = build_config(SHORT | {"lambda_patch": 1.0, "encoder": {"teacher": trained.encoder}})
    *_, last = dry_run(table, tmp_path / "run", config, "cpu")
    assert isinstance(last, Finished) and "they are of another slide" in last.result.problems[0]
