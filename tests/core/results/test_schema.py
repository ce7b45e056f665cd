"""Result files: writer and reader agree, files of 0.1.0 stay readable, newer versions are refused, faults are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from napari_lrmil import __version__
from napari_lrmil.core.errors import NewerSchemaError, StoredError
from napari_lrmil.core.results.schema import AgreementFile, CohortFile, PredictionFile, ResultFile, require_replaceable
from support.fake_slides import one_sentence

Content = dict[str, Any]

# As 0.1.0 wrote them before they had a version; floats with every digit
PREDICTION_0_1_0: Content = {
    "slide": "CMU-1",
    "path": "/scans/CMU-1.svs",
    "slide_fingerprint": "5f3c",
    "bundle": "demo",
    "bundle_sha256": "ab12",
    "classes": ["normal", "lesion"],
    "probabilities": {"normal": 0.30000000000000004, "lesion": 0.7},
    "calibrated": True,
    "logits": {"normal": -0.1234567890123456, "lesion": 1e-17},
    "predicted": "lesion",
    "mpp": 0.499,
    "lr_mpp": 2.0,
    "patch_um": 512.0,
    "n_patches": 9,
    "n_hr_patches": 140,
    "pixels_decoded": 123456,
    "reader": "tiles",
    "reader_reason": "the same as OpenSlide",
    "scope": "whole slide",
    "device": "cpu",
    "runtime": "openvino",
    "precision": "bfloat16",
    "runtime_reason": "the fastest that agrees",
    "seconds": {"open": 0.0, "total": 1.5},
    "warnings": ["little tissue"],
    "version": "0.1.0",
    "teacher": {
        "probabilities": {"normal": 0.25, "lesion": 0.75},
        "calibrated": False,
        "logits": {"normal": -1.0, "lesion": 0.5},
        "n_lr_patches": 3,
        "n_patches": 40,
        "pixels_decoded": 654321,
        "runtime": "torch",
        "precision": "float32",
        "runtime_reason": "asked for",
        "seconds": {"total": 9.75},
    },
}
AGREEMENT_0_1_0: Content = {
    "spearman": None,
    "jaccard_top10": 0.3333333333333333,
    "js_divergence": 0.0,
    "n_patches": 3,
    "probability_student": {"normal": 0.30000000000000004, "lesion": 0.7},
    "probability_teacher": {"normal": 0.25, "lesion": 0.75},
    "seconds_student": 1.5,
    "seconds_teacher": 9.75,
    "pixels_student": 123456,
    "pixels_teacher": 654321,
    "lesion_auroc_student": None,
    "lesion_auroc_teacher": 1.0,
    "pointing_student": None,
    "pointing_teacher": True,
    "n_lesion_patches": 1,
}
COHORT_0_1_0: Content = {
    "engine": "2 processes",
    "slides": 3,
    "done": 2,
    "already_there": 0,
    "failed": 1,
    "retried": 1,
    "seconds": 61.25,
    "slides_per_hour": None,
    "workers": {"host:12": {"tries": 3, "peak_memory_mb": 700.1}},
}
KINDS = [
    pytest.param(PredictionFile, PREDICTION_0_1_0, id="prediction"),
    pytest.param(AgreementFile, AGREEMENT_0_1_0, id="agreement"),
    pytest.param(CohortFile, COHORT_0_1_0, id="cohort"),
]


def put(folder: Path, kind: type[ResultFile], content: Any) -> None:
    (folder / kind.FILE_NAME).write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(("kind", "content"), KINDS)
def test_a_file_of_0_1_0_opens_and_is_written_again_with_its_version_and_nothing_else_changed(
    tmp_path: Path, kind: type[ResultFile], content: Content
) -> None:
    put(tmp_path, kind, content)
    file = kind.read(tmp_path)
    assert file.schema_version == 1
    file.write(tmp_path)
    written = (tmp_path / kind.FILE_NAME).read_text(encoding="utf-8")
    assert written == json.dumps({"schema_version": 1} | content, indent=2) + "\n", "order, digits and nulls"
    assert kind.read(tmp_path) == file


def test_keys_that_need_a_teacher_or_lesions_are_absent_without_them(tmp_path: Path) -> None:
    alone = {key: value for key, value in PREDICTION_0_1_0.items() if key != "teacher"}
    put(tmp_path, PredictionFile, alone)
    assert list(PredictionFile.read(tmp_path).as_json()) == ["schema_version", *alone]
    plain = {
        key: value for key, value in AGREEMENT_0_1_0.items() if not key.startswith(("lesion_", "pointing_", "n_l"))
    }
    put(tmp_path, AgreementFile, plain)
    assert list(AgreementFile.read(tmp_path).as_json()) == ["schema_version", *plain]


def test_a_file_of_an_early_build_opens(tmp_path: Path) -> None:
    """Where the slide lay, its resolution, its reader, the scope and the runtime came in the course of 0.1.0."""
    later = {"path", "mpp", "reader", "reader_reason", "scope", "runtime", "precision", "runtime_reason"}
    early = {key: value for key, value in PREDICTION_0_1_0.items() if key not in later}
    early["teacher"] = {k: early["teacher"][k] for k in ("probabilities", "logits", "pixels_decoded", "seconds")}
    put(tmp_path, PredictionFile, early)
    file = PredictionFile.read(tmp_path)
    assert file.probabilities == PREDICTION_0_1_0["probabilities"] and file.teacher is not None
    assert {getattr(file, name) for name in later} == {None} and file.teacher.n_lr_patches is None
    put(tmp_path, AgreementFile, {k: v for k, v in AGREEMENT_0_1_0.items() if not k.startswith("pixels")})
    assert AgreementFile.read(tmp_path).pixels_teacher is None


@pytest.mark.parametrize(("kind", "content"), KINDS)
@pytest.mark.parametrize("version", [2, 17, 1.5])
def test_a_newer_version_is_refused_with_both_versions_named(
    tmp_path: Path, kind: type[ResultFile], content: Content, version: float
) -> None:
    for newer in (content | {"schema_version": version}, {"schema_version": version, "slide": {"renamed": True}}):
        put(tmp_path, kind, newer)
        with pytest.raises(StoredError, match=rf"schema version {version}.*up to 1;") as refused:
            kind.read(tmp_path)
        assert isinstance(refused.value, NewerSchemaError) and one_sentence(refused.value)
        assert str(tmp_path / kind.FILE_NAME) in str(refused.value) and __version__ in str(refused.value)


def test_keys_that_are_not_known_are_passed_over(tmp_path: Path) -> None:
    added = PREDICTION_0_1_0 | {"schema_version": 1, "embedding": [1, 2]}
    added["teacher"] = added["teacher"] | {"embedding": None}
    put(tmp_path, PredictionFile, added)
    assert PredictionFile.read(tmp_path).as_json() == {"schema_version": 1} | PREDICTION_0_1_0
    workers = {"host:12": COHORT_0_1_0["workers"]["host:12"] | {"gpu": 0}}
    put(tmp_path, CohortFile, COHORT_0_1_0 | {"workers": workers, "host": "a"})
    assert CohortFile.read(tmp_path).as_json() == {"schema_version": 1} | COHORT_0_1_0


def without(*path: str) -> Callable[[Content], Any]:
    def change(content: Content) -> Content:
        inner = content
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        return content

    return change


@pytest.mark.parametrize(
    ("kind", "content", "change", "expected"),
    [
        (PredictionFile, PREDICTION_0_1_0, without("n_patches"), "n_patches is missing"),
        (PredictionFile, PREDICTION_0_1_0, without("teacher", "logits"), "teacher.logits is missing"),
        (PredictionFile, PREDICTION_0_1_0, without("seconds", "total"), "seconds.total is missing"),
        (PredictionFile, PREDICTION_0_1_0, without("teacher", "seconds", "total"), "teacher: seconds.total is missing"),
        (PredictionFile, PREDICTION_0_1_0, without("probabilities", "lesion"), "probabilities has no value for lesion"),
        (PredictionFile, PREDICTION_0_1_0, without("teacher", "logits", "normal"), "teacher.logits has no value for n"),
        (PredictionFile, PREDICTION_0_1_0, without("reader_reason"), "reader_reason is missing"),
        (PredictionFile, PREDICTION_0_1_0, lambda c: c | {"seconds": None}, "seconds: "),
        (PredictionFile, PREDICTION_0_1_0, lambda c: c | {"logits": {"normal": "high"}}, "logits.normal: "),
        (PredictionFile, PREDICTION_0_1_0, lambda c: c | {"mpp": float("nan")}, "mpp: .*finite"),
        (PredictionFile, PREDICTION_0_1_0, lambda c: c | {"schema_version": "2"}, "schema_version: .*integer"),
        (PredictionFile, PREDICTION_0_1_0, lambda c: c | {"schema_version": None}, "schema_version: .*integer"),
        (PredictionFile, PREDICTION_0_1_0, lambda c: c | {"schema_version": True}, "schema_version: .*integer"),
        (PredictionFile, PREDICTION_0_1_0, lambda c: c | {"schema_version": 0}, "schema_version: .*greater"),
        (PredictionFile, PREDICTION_0_1_0, lambda _: [1], "it holds a list"),
        (AgreementFile, AGREEMENT_0_1_0, without("spearman"), "spearman is missing"),
        (AgreementFile, AGREEMENT_0_1_0, lambda c: c | {"js_divergence": None}, "js_divergence: "),
        (CohortFile, COHORT_0_1_0, without("workers", "host:12", "tries"), "workers.host:12.tries is missing"),
    ],
)
def test_a_broken_field_is_named_in_one_sentence(
    tmp_path: Path, kind: type[ResultFile], content: Content, change: Callable[[Content], Any], expected: str
) -> None:
    put(tmp_path, kind, change(json.loads(json.dumps(content))))
    with pytest.raises(StoredError, match=rf"\({expected}.*run the analysis again") as refused:
        kind.read(tmp_path)
    assert not isinstance(refused.value, NewerSchemaError) and one_sentence(refused.value)


@pytest.mark.parametrize("text", ['{"slide":', "", "\ufffe", "[" * 100_000])
def test_what_is_no_json_is_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "prediction.json").write_text(text, encoding="utf-16")
    with pytest.raises(StoredError, match="cannot be read as stored results") as refused:
        PredictionFile.read(tmp_path)
    (tmp_path / "prediction.json").write_text(text, encoding="utf-8")
    with pytest.raises(StoredError, match="cannot be read as stored results"):
        PredictionFile.read(tmp_path)
    assert one_sentence(refused.value)
    with pytest.raises(StoredError, match="cannot be read as stored results"):
        PredictionFile.read(tmp_path / "absent")


def test_a_nan_never_reaches_a_file() -> None:
    with pytest.raises(ValueError, match="js_divergence"):
        AgreementFile.model_validate(AGREEMENT_0_1_0 | {"js_divergence": float("nan")})


def test_only_a_file_of_a_newer_version_keeps_a_folder_from_being_replaced(tmp_path: Path) -> None:
    require_replaceable(tmp_path / "absent")
    put(tmp_path, PredictionFile, PREDICTION_0_1_0)
    (tmp_path / "agreement.json").write_text("{broken")
    require_replaceable(tmp_path)
    put(tmp_path, AgreementFile, {"schema_version": 2})
    with pytest.raises(NewerSchemaError, match=r"agreement\.json"):
        require_replaceable(tmp_path)
