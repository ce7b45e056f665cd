"""A run folder: its files, metrics.json and slides.json, features and maps, and that a run of 0.1.0 is read."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from lrmil_training.config import build_config, load_config
from lrmil_training.data.feature_store import StoredRows
from lrmil_training.evaluation.attention_files import read_attention_map
from lrmil_training.report.report import write_report
from lrmil_training.report.run_record import read_run
from lrmil_training.train import train
from napari_lrmil.core.features.bag import read_bag
from napari_lrmil.core.phantom import make_cohort
from napari_lrmil.core.results.cohort_tables import read_failures
from napari_lrmil.plugin.train.result_table import read_run_result
from napari_lrmil.plugin.train.run_process import RunPhase, TrainingRun
from support.run_folders import write_series
from support.shapes import STORED, mismatches

RUN, SERIES = STORED / "run", STORED / "series"
HR_FEATURES = "20x_32px_0px_overlap/features_untrained/test-13-007.h5"
LR_FEATURES = "5x_32px_0px_overlap/features_student-876c9aff/test-13-007.h5"

NUMBER = (float, None)
INTERVAL = {"value": NUMBER, "low": NUMBER, "high": NUMBER}
PER_CLASS = {"normal": float, "lesion": float}
AGREEMENT = {"spearman": NUMBER, "jaccard_top10": NUMBER, "js_divergence": NUMBER}
NOT_WORSE = {
    "margin": float,
    "low": NUMBER,
    "holds": (bool, None),
    "interval": (str, None),
    "reason": (str, None),
}
FIGURES: dict[str, Any] = {
    "auroc": {**INTERVAL, "n_slides": int, "n_patients": int, "n_clusters": int, "interval": str},
    "balanced_accuracy": NUMBER,
    "f1": NUMBER,
    "ece": NUMBER,
    "brier": NUMBER,
    "per_class": {str: {"precision": NUMBER, "recall": NUMBER, "f1": NUMBER, "n": int}},
    "class_counts": {"normal": int, "lesion": int},
    "confusion": [[int]],
    "reliability": [{"n": int, "confidence": float, "accuracy": float}],
    "calibrated": bool,
    "paired": {str: INTERVAL},
    "delong": {str: INTERVAL | {"p": NUMBER, "reason": (str, None)}},
    "non_inferiority": (NOT_WORSE, None),  # None of the teacher, whom the others are held against
    "agreement": (AGREEMENT, None),
    "lesion_auroc": NUMBER,
    "cost": {
        "patches_per_slide": float,
        "patches_total": float,
        "pixels_per_slide": NUMBER,
        "cpu_seconds_per_slide": NUMBER,
    },
}
SHARE = {**INTERVAL, "n_slides": int, "n_clusters": int}
NO_LIMIT = {"reason": str}
LIMITS = {  # after 0.1.0
    "operating_point": (
        {
            "positive": str,
            "threshold": float,
            "rule": str,
            "chosen_here": bool,
            "sensitivity": SHARE,
            "specificity": SHARE,
            "interval": str,
        },
        NO_LIMIT,
    ),
    "prediction_sets": (
        {
            "coverage": float,
            "calibration_slides": int,
            "calibration_patients": int,
            "empirical": SHARE,
            "by_class": {str: SHARE},
            "mean_size": float,
            "singletons": float,
            "interval": str,
        },
        NO_LIMIT,
    ),
}
PATIENTS = {  # after 0.1.0; absent if every patient has one slide
    **{name: FIGURES[name] for name in ("auroc", "balanced_accuracy", "f1", "ece", "brier", "per_class")},
    **{name: FIGURES[name] for name in ("class_counts", "confusion", "reliability", "calibrated", "paired")},
    "pooling": str,
    "n_bags": int,
    "left_out": [str],
}
METRICS = {str: {str: FIGURES}}
SLIDE = {
    "slide": str,
    "patient": str,
    "label": str,
    "split": str,
    "n_patches": int,
    "n_hr_patches": int,
    "methods": {
        str: {
            "logits": PER_CLASS,
            "probabilities": PER_CLASS,
            "agreement": (AGREEMENT, None),
            "lesion_auroc": NUMBER,
        }
    },
}
MEAN = {"mean": NUMBER, "sd": NUMBER, "n_runs": int}
MEAN_OF_RUNS = MEAN | {"runs": [{"fold": (int, None), "seed": int, "value": NUMBER}]}
SUMMARY = {
    "auroc": MEAN_OF_RUNS,
    "balanced_accuracy": MEAN,
    "f1": MEAN,
    "ece": MEAN,
    "brier": MEAN,
    "lesion_auroc": MEAN,
    "agreement": {"spearman": MEAN, "jaccard_top10": MEAN, "js_divergence": MEAN},
    "paired": {str: MEAN_OF_RUNS | {"positive": int}},
}
PATIENTS_SUMMARY = {"auroc": MEAN_OF_RUNS} | dict.fromkeys(("balanced_accuracy", "f1", "ece", "brier"), MEAN)
PROTOCOL = {"kind": str, "folds": int, "seeds": int}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a short run: eight small slides, one epoch of each stage."""
    folder = tmp_path_factory.mktemp("run")
    for split, count, seed in (("train", 4, 1), ("val", 2, 2), ("test", 2, 3)):
        list(make_cohort(folder, count, (768, 512), seed, split=split))
    once = {"epochs": 1, "min_epochs": 1}
    stages = {"teacher": once, "stage1": {"epochs": 1, "batch_size": 2}, "stage2": once, "stage3": once | {"lr": 1e-4}}
    words: dict[str, Any] = {"encoder": {"teacher": str(RUN / "bundle")}, "bootstrap": 100, **stages}
    config = build_config(words | {"hr_patch_px": 32, "lr_patch_px": 32})
    list(train(folder / "cohort.csv", folder / "run", config, torch.device("cpu")))
    return folder / "run"


# ---------------------------------------------------------------- what is written


def test_files_of_a_run(run: Path) -> None:
    """Files of checkpoints, features, thumbnails and maps, with hashes and names of slides and stages left out."""
    pattern = re.compile(r"(train|val|test)-\d-\d{3}|(?<=student-)[0-9a-f]{8}|(?<=\w-)[0-9a-f]{8}(?=/)")
    names = {pattern.sub("*", path.relative_to(run).as_posix()) for path in run.rglob("*") if path.is_file()}
    stages = ("teacher", "stage1", "stage2", "stage3", "labels_only")
    assert names == {
        *("config.yaml", "call.json", "cohort.sha256", "events.jsonl", "metrics.json", "slides.json", "report.html"),
        *(f"bundle/{name}" for name in ("lrmil.json", "student.safetensors", "teacher.safetensors", "README.md")),
        "bundle/limits.json",  # after 0.1.0
        *(f"checkpoints/{stage}-*/{stage}.{ending}" for stage in stages for ending in ("ckpt", "done")),
        *("attention/student/*.h5", "attention/teacher/*.h5", "thumbnails/*.jpg", "thumbnails/boxes.json"),
        *(
            "features/20x_32px_0px_overlap/features_untrained/*.h5",
            "features/5x_32px_0px_overlap/features_student-*/*.h5",
        ),
    }


def test_small_files_of_a_run(run: Path) -> None:
    assert mismatches(read_json(run / "call.json"), {"cohort": str, "device": str}) == []
    assert re.fullmatch("[0-9a-f]{64}", (run / "cohort.sha256").read_text())
    assert mismatches(read_json(run / "thumbnails" / "boxes.json"), {str: [float]}) == []


def test_keys_of_the_metrics(run: Path) -> None:
    found = read_json(run / "metrics.json")
    assert list(found) == ["teacher", "student", "labels_only"] and list(found["student"]) == ["val", "test"]
    assert mismatches(found, {str: {str: FIGURES | LIMITS}}) == []


def test_keys_of_the_slides(run: Path) -> None:
    assert mismatches(read_json(run / "slides.json"), {"slides": [SLIDE]}) == []


def test_keys_of_a_series(tmp_path: Path) -> None:
    written = write_series(tmp_path / "folds", {"val": 12, "test": 12}, folds=2)  # of patients with several slides
    for folder, by_patient in ((SERIES, False), (written, True)):
        figures = {str: {str: FIGURES | ({"patients": PATIENTS} if by_patient else {})}}
        summary = SUMMARY | ({"patients": PATIENTS_SUMMARY} if by_patient else {})
        found = read_json(folder / "metrics.json")
        assert list(found) == ["protocol", "runs", "summary"]
        assert mismatches(found["protocol"], PROTOCOL) == []
        assert mismatches(found["summary"], {str: {str: summary}}) == []
        for one in found["runs"]:
            methods = {method: figures for method, figures in one.items() if method not in ("fold", "seed")}
            assert mismatches(methods, figures) == []
            assert mismatches({"fold": one["fold"], "seed": one["seed"]}, {"fold": (int, None), "seed": int}) == []


COORDS = {
    "patch_size",
    "patch_size_level0",
    "level0_magnification",
    "target_magnification",
    "overlap",
    "level0_width",
    "level0_height",
    "name",
    "savetodir",
    "mpp0",
    "target_mpp",
    "patch_um",
    "patch_level0_xy",
    "origin_level0",
    "encoder",
    "encoder_sha256",
    "slide_fingerprint",
    "pixels_decoded",
    "cpu_seconds",
}


def test_features(run: Path) -> None:
    """Ours and TRIDENT's attributes; the layers that stage 1 compares lie beside the embeddings."""
    paths = [*(run / "features").rglob("*.h5"), *(RUN / "features").rglob("*.h5")]
    assert paths
    for path in paths:
        with h5py.File(path) as file:
            assert dict(file.attrs) == {"complete": True}
            assert set(file) == {"coords", "features"} | ({"layers"} if "20x" in str(path) else set())
            assert set(file["coords"].attrs) == COORDS
            assert set(file["features"].attrs) == {"name", "savetodir", "encoder"}
            assert set(file.get("layers", ())) <= {"block_12"}
            assert (file["coords"].dtype, file["features"].dtype) == ("i8", "f4")


def test_maps(run: Path) -> None:
    for path in [*(run / "attention").rglob("*.h5"), *(RUN / "attention").rglob("*.h5")]:
        with h5py.File(path) as file:
            assert set(file) == {"coords", "attention"}
            assert set(file["coords"].attrs) == {"patch_level0_xy", "patch_size_level0"}


# ---------------------------------------------------------------- what 0.1.0 wrote


def test_keys_of_the_stored_run() -> None:
    found = read_json(RUN / "metrics.json")
    assert mismatches(found, METRICS) == []
    assert mismatches(read_json(RUN / "slides.json"), {"slides": [SLIDE]}) == []


def test_the_stored_run_is_read() -> None:
    record, stored = read_run(RUN), read_json(RUN / "metrics.json")
    assert record.finished and record.splits == ["test", "val"] and len(record.slides) == 38
    assert record.names == ["teacher", "student", "labels_only"] and record.methods == stored
    [(name, step, reason)] = read_failures(RUN)
    assert (name, step) == ("broken", "features") and "not a slide that OpenSlide can open" in reason


def test_the_stored_series_is_read() -> None:
    record = read_run(SERIES)
    assert record.protocol == {"kind": "k-fold cross-validation", "folds": 3, "seeds": 1}
    assert (len(record.runs), record.names, record.splits) == (3, ["teacher", "student"], ["test", "val"])
    result = read_run_result(SERIES)
    assert result is not None and [row.auroc for row in result.rows] == ["0.35", "0.53"]


def test_the_window_opens_the_stored_run() -> None:
    run = TrainingRun()
    run.open(RUN)
    assert run.phase is RunPhase.FINISHED and run.foreign == ""
    result = read_run_result(RUN)
    assert result is not None and result.split == "test" and result.bundle == RUN / "bundle"
    rows = {row.method: (row.auroc, row.interval, row.accuracy, row.agreement, row.patches) for row in result.rows}
    assert rows == {
        "teacher": ("0.20", "0.00 to 0.60", "0.60", "–", "207"),
        "student": ("0.12", "0.00 to 0.32", "0.30", "0.16", "19"),
        "labels_only": ("0.64", "0.30 to 0.98", "0.60", "-0.09", "19"),
    }


def test_a_report_is_made_of_the_stored_run(tmp_path: Path) -> None:
    """The slides are not there: the one with a thumbnail is shown with its maps."""
    shutil.copytree(RUN, tmp_path / "run")
    write_report(tmp_path / "run", None)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    for text in ("phantoms-v0-1", "test-13-002", "0.120", "not a slide that OpenSlide can open"):
        assert text in page, text
    assert page.count("data:image/jpeg") == 3 and "not finished" not in page


@pytest.mark.parametrize("folder", [RUN, SERIES])
def test_the_stored_configuration_is_read(folder: Path) -> None:
    config = load_config(folder / "config.yaml")
    assert (config.name, config.hr_patch_px, config.stage2.epochs) == ("phantoms-v0-1", 32, 4 if folder == RUN else 2)
    assert config.stage3.lr == (3e-5, 1e-4) and config.folds == (0 if folder == RUN else 3)


def test_stored_features_are_read() -> None:
    high, low = (read_bag(RUN / "features" / name) for name in (HR_FEATURES, LR_FEATURES))
    assert high.features.shape == (54, 128) and high.layers["block_12"].shape == (54, 16)
    assert low.features.shape == (7, 128) and not low.layers
    assert (high.origin.encoder, low.origin.encoder) == ("untrained", "student-876c9aff")
    assert (high.origin.patch_px, high.origin.patch_level0, low.origin.patch_level0) == (32, (32, 32), (128, 128))
    assert high.origin.slide_fingerprint == low.origin.slide_fingerprint == "96b6d2177e413413963bf1324ca649c3"
    rows = StoredRows.of(RUN / "features" / HR_FEATURES, "layers/block_12")()
    np.testing.assert_array_equal(rows, high.layers["block_12"])


def test_stored_maps_are_read() -> None:
    student, teacher = (
        read_attention_map(RUN / "attention" / name / "test-13-002.h5") for name in ("student", "teacher")
    )
    assert student is not None and teacher is not None
    assert (student.patch_level0, teacher.patch_level0) == ((128, 128), (32, 32))
    assert (len(student.coords), len(teacher.coords)) == (22, 260)
    assert student.attention.sum() == pytest.approx(1, abs=1e-5) and teacher.attention.sum() == pytest.approx(
        1, abs=1e-5
    )
