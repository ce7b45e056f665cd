"""One bag of all slides of a patient: exact joins, training, what travels, and equal answers wherever it is asked."""

from __future__ import annotations

import csv
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from lrmil_training.config import build_config
from lrmil_training.data.bags import BagItem
from lrmil_training.data.cohort import Cohort, CohortSlide, read_cohort
from lrmil_training.data.patient_bags import join_items, require_one_label
from lrmil_training.external_evaluation import ExternalEvaluation, evaluate_bundle
from lrmil_training.losses import patch_cross_entropy
from lrmil_training.stages.embedding_statistics import (
    fit_embedding_statistics,
    measure_embeddings,
    measure_patient_embeddings,
)
from lrmil_training.stages.end_to_end import PatientPixels, PixelBag
from lrmil_training.train import train
from napari_lrmil.api import predict_patients
from napari_lrmil.core.atomic_files import write_json
from napari_lrmil.core.csv_files import read_csv
from napari_lrmil.core.errors import CohortError, ConfigError
from napari_lrmil.core.events import Finished
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.card import CARD
from napari_lrmil.core.models.cohort_distance import PATIENT_EMBEDDINGS, write_embedding_statistics
from napari_lrmil.core.models.limits import LIMITS, ConformalScores
from napari_lrmil.core.models.mil import GatedAttentionMIL, pool_bag
from napari_lrmil.core.models.patient_bag import ONE_BAG, attention_mass, attention_shares, bag_logits
from support.killed_training import assert_epochs_not_repeated, resume_killed_training
from support.phantoms import copy_cohort
from support.trained import Trained

CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "bag": "patient",
    "hr_patch_px": 64,
    "lr_patch_px": 64,
    "bootstrap": 100,
    "operating_point": {"sensitivity": 1.0},
    "teacher": {"epochs": 2, "min_epochs": 1},
    "stage1": {"epochs": 1},
    "stage2": {"epochs": 3, "min_epochs": 1},
    "stage3": {"epochs": 3, "min_epochs": 1, "patches_per_slide": 4, "lr": [1e-3]},
}


def join_patients(table: Path) -> None:
    """Give every two slides of one label and split one patient."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    seen: dict[tuple[str, str], int] = {}
    for row in rows:
        key = row["split"], row["label"]
        number = seen[key] = seen.get(key, 0) + 1
        row["patient"] = f"{row['split']}-{row['label']}-{(number - 1) // 2}"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def cohort(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = copy_cohort(phantoms, tmp_path_factory.mktemp("cohort"), train=4, val=4, test=4)
    join_patients(table)
    return table


@pytest.fixture(scope="module")
def settings(trained: Trained) -> dict[str, Any]:
    return TINY | {"encoder": {"teacher": trained.encoder}}


@pytest.fixture(scope="module")
def run(cohort: Path, settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patients") / "run"
    assert list(train(cohort, folder, build_config(settings), CPU))[-1] == Finished(folder)
    return folder


def test_the_logits_of_a_bag_follow_from_those_of_its_slides() -> None:
    """Exactly, as the softmax is over all patches; each slide counts by its share of the attention."""
    torch.manual_seed(0)
    mil = GatedAttentionMIL(8, 3, 4).eval()
    parts = [torch.randn(n, 8) * 3 for n in (5, 40, 1)]
    alone = [pool_bag(mil, part.numpy(), CPU) for part in parts]
    masses = [attention_mass(p.scores) for p in alone]
    whole = mil(torch.cat(parts))
    joined = bag_logits(np.stack([p.logits for p in alone]), masses)
    assert joined == pytest.approx(whole.logits.detach().numpy(), abs=1e-5)
    shares = attention_shares(masses)
    assert shares.sum() == pytest.approx(1, abs=1e-12)
    expected = torch.stack([part.sum() for part in torch.split(whole.attention, [5, 40, 1])]).detach().numpy()
    assert shares == pytest.approx(expected, abs=1e-6)


def test_a_slide_without_outlines_has_no_patch_loss_within_a_bag() -> None:
    outlined = BagItem(torch.empty(0), 1, patch_targets=torch.tensor([[0.25, 0.75], [1.0, 0.0]]), lambda_patch=1.0)
    silent = BagItem(torch.empty(0), 1, lambda_patch=1.0)
    joined = join_items([silent, outlined], [3, 2])
    assert joined.patch_targets.tolist() == [[0, 0]] * 3 + [[0.25, 0.75], [1, 0]]
    logits = torch.randn(5, 2)
    alone = patch_cross_entropy(logits[3:], outlined.patch_targets)
    assert patch_cross_entropy(logits, joined.patch_targets) == pytest.approx(float(alone) * 2 / 5, abs=1e-6)


def test_pixels_of_a_bag_come_slide_by_slide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row numbers count through the slides of the patient."""

    def read(self: Any, handles: Any, rows: Any) -> torch.Tensor:
        return torch.tensor([100 * self.row + int(r) for r in rows])

    monkeypatch.setattr(PixelBag, "read", read)
    item = BagItem(torch.empty(0), 0)
    parts = tuple(PixelBag(number, range(count), item) for number, count in ((1, 3), (2, 4), (3, 2)))  # type: ignore[arg-type]
    bag = PatientPixels(parts, item)
    assert len(bag) == 9
    rows = np.array([0, 2, 3, 6, 7, 8])
    assert bag.read(None, rows).tolist() == [100, 102, 200, 203, 300, 301]  # type: ignore[arg-type]
    assert bag.read(None, np.array([7])).tolist() == [300]  # type: ignore[arg-type]


def test_a_patient_with_two_labels_is_refused_before_any_work(
    cohort: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    """The sentence names up to five of them; by slide the same table is fine."""
    lines = cohort.read_text().splitlines()
    header = lines[0].split(",")
    column = header.index("patient")
    table = cohort.parent / "mixed.csv"
    rows = [line.split(",") for line in lines[1:]]
    for row in rows:
        row[column] = row[header.index("split")]
    table.write_text("\n".join(",".join(row) for row in [header, *rows]))
    with pytest.raises(CohortError, match=r"3 have slides of several: .*train.*train with bag: slide"):
        list(train(table, tmp_path / "run", build_config(settings), CPU))
    assert not (tmp_path / "run").exists()
    many = read_cohort(table)
    from dataclasses import replace

    slides = tuple(replace(s, patient=f"p{i // 2}", label=("a", "b")[i % 2]) for i, s in enumerate(many.slides))
    with pytest.raises(CohortError, match="p0, p1, p2, p3, p4 and 1 more"):
        require_one_label(replace(many, slides=slides))


def test_top_patches_cannot_be_joined_by_attention() -> None:
    """Neither as the teacher's aggregator nor as a candidate of the inner folds."""
    candidates = {"inner_folds": 3, "aggregators": ["gated_attention", "linear_topk"]}
    for change in ({"teacher": {"aggregator": "linear_topk"}}, {"selection": candidates}):
        key = "aggregators" if "selection" in change else "teacher.aggregator"
        with pytest.raises(ConfigError, match=rf"linear_topk in \S*{key} .* or set bag=slide"):
            build_config({"bag": "patient", **change})


def test_run_evaluation_and_prediction_give_a_patient_one_answer(run: Path, cohort: Path, tmp_path: Path) -> None:
    """The bundle says how it was trained; other bundles do not have the key."""
    assert json.loads((run / "bundle" / CARD).read_text())["bag"] == "patient"
    metrics = json.loads((run / "metrics.json").read_text())
    for method in ("teacher", "student", "labels_only"):
        assert metrics[method]["test"]["patients"]["pooling"] == ONE_BAG
    bundle = Bundle(run / "bundle")
    list(evaluate_bundle(cohort, tmp_path / "evaluated", ExternalEvaluation(bundle, "test", True, CPU)))
    again = json.loads((tmp_path / "evaluated" / "metrics.json").read_text())
    for method in ("teacher", "student"):
        figures = metrics[method]["test"]["patients"]
        assert again[method]["test"]["patients"]["brier"] == pytest.approx(figures["brier"], abs=1e-4)
    answers = predict_patients(cohort, tmp_path / "out", run / "bundle", device="cpu", runtime="torch")
    header, *lines = read_csv(run / "patients.csv")
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    stored = {row["patient"]: row for row in rows if row["method"] == "student"}
    assert len(answers) == len(stored) == 6
    for answer in answers:
        assert answer.pooling == stored[answer.patient]["pooling"] == ONE_BAG and len(answer.slides) == 2
        assert sum(answer.attention_shares.values()) == pytest.approx(1, abs=1e-12)
        for name, value in answer.probabilities.items():
            assert value == pytest.approx(float(stored[answer.patient][f"probability_{name}"]), abs=1e-4)
    entries = json.loads((tmp_path / "out" / "patients.json").read_text())["patients"]
    assert set(entries[0]["attention_shares"]) == set(entries[0]["slides"])


def test_limits_are_those_of_patients(run: Path, cohort: Path, tmp_path: Path) -> None:
    """The operating point counts validation patients; sides, sets and distances are not those of slides."""
    metrics = json.loads((run / "metrics.json").read_text())["student"]
    point = metrics["test"]["operating_point"]
    assert point["level"] == "patient" and point["sensitivity"]["n_slides"] == 1, "one patient with a lesion"
    copy = Path(shutil.copytree(run / "bundle", tmp_path / "bundle"))
    limits = Bundle(copy).limits
    assert limits is not None and limits.level == "patient"
    fitted = limits.student.operating_point
    assert fitted is not None and (fitted.positives, fitted.negatives) == (1, 1)
    assert "on the validation patients" in (copy / "README.md").read_text()
    scores = ConformalScores(scores=tuple(i / 20 for i in range(20)), patients=tuple(range(20)))
    student = limits.student.model_copy(update={"conformal": scores})
    write_json(copy / LIMITS, limits.model_copy(update={"student": student}).model_dump(mode="json"))
    rng, dim = np.random.default_rng(0), Bundle(copy).card.student.dim
    names = [f"P{i}" for i in range(12)]
    statistics = fit_embedding_statistics(rng.normal(size=(12, dim)), names, rng.normal(size=(4, dim)))
    write_embedding_statistics(copy, statistics, Bundle(copy).sha256, PATIENT_EMBEDDINGS)
    answers = predict_patients(cohort, tmp_path / "out", copy, device="cpu", runtime="torch")
    stored = Bundle(copy).patient_embedding_statistics
    assert stored is not None
    for answer in answers:
        side, classes, distance = answer.limits.side, answer.limits.classes, answer.cohort_distance
        assert side is not None and classes is not None and distance is not None
        assert side.reached == (answer.probabilities[side.positive] >= fitted.threshold)
        assert answer.predicted in classes.classes
        means, counts = zip(*(_mean_embedding(tmp_path / "out" / name) for name in answer.slides), strict=True)
        mean = sum(m * n for m, n in zip(means, counts, strict=True)) / sum(counts)
        assert distance.distance == pytest.approx(stored.measure(mean).distance, abs=1e-9)
        for name in answer.slides:
            assert "operating_point" not in json.loads((tmp_path / "out" / name / "prediction.json").read_text())
    entry = json.loads((tmp_path / "out" / "patients.json").read_text())["patients"][0]
    assert entry["operating_point"]["threshold"] == fitted.threshold and "limits" not in entry
    header, *lines = read_csv(tmp_path / "out" / "patients.csv")
    cells = dict(zip(header, lines[0], strict=True))
    assert cells["prediction_set"] and float(cells["distance_quantile"]) <= 1 and header[-1] == "reason"


def _mean_embedding(folder: Path) -> tuple[Any, int]:
    with h5py.File(folder / "attention.h5") as file:
        return np.array(file["embedding"][:]), len(file["coords"])


def test_statistics_of_patients_are_of_all_their_patches(tmp_path: Path) -> None:
    """Two slides with 1 and 3 patches: the mean is that of the four patches."""
    rng = np.random.default_rng(0)
    splits = ["train"] * 24 + ["val"] * 4
    slides = tuple(
        CohortSlide(tmp_path / f"s{i}.tif", f"P{i // 2}", "ab"[i // 2 % 2], split) for i, split in enumerate(splits)
    )
    table = Cohort(tmp_path / "c.csv", slides, ("a", "b"), fixed=True)
    rows = {s.name: rng.normal(size=(1 + 2 * (i % 2), 3)).astype(np.float32) for i, s in enumerate(slides)}
    features: Any = {name: partial(np.array, values) for name, values in rows.items()}
    statistics = measure_patient_embeddings(table, features)
    assert statistics is not None and statistics.counts.tolist() == [12, 14]
    bags = [np.concatenate([rows[s.name] for s in slides[2 * p : 2 * p + 2]]) for p in range(12)]
    assert statistics.mean == pytest.approx(np.mean([bag.mean(axis=0) for bag in bags], axis=0), abs=1e-6)
    slides_alone = measure_embeddings(table, features)
    assert slides_alone is not None and slides_alone.counts.tolist() == [24, 28]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("stage", ["stage2", "stage3"])
def test_killed_and_resumed_equals_unbroken(
    stage: str, run: Path, cohort: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert_epochs_not_repeated(resume_killed_training(cohort, folder, settings, f"{stage} 1"), stage)
    whole, resumed = (read_csv(path / "patients.csv") for path in (run, folder))
    assert len(whole) == len(resumed)
    for expected, row in zip(whole[1:], resumed[1:], strict=True):
        assert row[:4] == expected[:4]
        assert [float(v) for v in row[5:7]] == pytest.approx([float(v) for v in expected[5:7]], abs=1e-4)
