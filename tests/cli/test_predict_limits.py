"""Operating point and set of classes in what `predict` prints and writes; bundles without them give what they gave."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from napari_lrmil.core.cohort.predict_task import open_bundle_once
from napari_lrmil.core.inference.slide_limits import network_limits
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.limits import (
    LIMITS,
    NO_CALIBRATION_SPLIT,
    ConformalScores,
    ModelLimits,
    NetworkLimits,
    OperatingPoint,
)
from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide
from napari_lrmil.core.results.schema import PredictionFile
from napari_lrmil.core.worklist.entry import StoredAnswer
from support.networks import untrained_bundle

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slide")
    write_slide(folder, PhantomSlide("first", LESION, 1, (1024, 768)))
    return next(folder.glob("first.tif*"))


def write_limits(bundle: Bundle, threshold: float, score: float, **changed: float) -> None:
    """Give a bundle an operating point, and the scores of 20 patients."""
    counts = {"sensitivity": 1.0, "specificity": 1.0, "positives": 5, "negatives": 5} | changed
    point = OperatingPoint(positive="lesion", threshold=threshold, rule="Youden's index", **counts)
    conformal = ConformalScores(scores=(score,) * 20, patients=tuple(range(20)))
    limits = ModelLimits(bundle_sha256=bundle.sha256, student=NetworkLimits(operating_point=point, conformal=conformal))
    (bundle.path / LIMITS).write_text(limits.model_dump_json())


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "first" / "prediction.json").read_text())
    return content


def test_a_bundle_without_limits_says_nothing_of_them(call: Call, slide: Path, tmp_path: Path) -> None:
    bundle = untrained_bundle(tmp_path / "bundle")
    assert bundle.limits is None
    code, printed, _ = call("predict", slide, "--bundle", bundle.path, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 0 and "operating point" not in printed and "set at" not in printed
    assert not {"operating_point", "prediction_set"} & set(read(tmp_path / "out"))
    assert not {"operating_point", "prediction_set"} & set(rows(tmp_path / "out")[0])


def test_side_and_set_are_printed_written_and_kept(call: Call, slide: Path, tmp_path: Path) -> None:
    """A second call keeps the result; after another calibration of the same weights it is predicted again."""
    bundle, out = untrained_bundle(tmp_path / "bundle"), tmp_path / "out"
    words = ("predict", slide, "--bundle", bundle.path, "--out", out, "--device", "cpu", "--runtime", "torch")
    write_limits(bundle, 0.0, 1.0)
    code, printed, _ = call(*words)
    assert code == 0
    result, (row,) = read(out), rows(out)
    printed = " ".join(printed.split())
    assert (
        "at or above the operating point of lesion, 0.000; " in printed and "set at 90 %: normal or lesion" in printed
    )
    assert result["operating_point"] == {"positive": "lesion", "threshold": 0.0, "reached": True}
    assert result["prediction_set"] == {"coverage": 0.9, "classes": ["normal", "lesion"]}
    assert (row["positive"], row["operating_point"].partition(";")[0]) == ("lesion", "at or above 0.000000")
    assert (row["prediction_set"], row["coverage"]) == ("normal | lesion", "0.9")
    again = call(*words)[1]
    assert "set at 90 %: normal or lesion (already there)" in again
    write_limits(bundle, 1.0, 0.0)
    open_bundle_once.cache_clear()  # as in a new process
    changed = call(*words)[1]
    assert "already there" not in changed and f"set at 90 %: {result['predicted']} (" in changed
    assert read(out)["operating_point"]["reached"] is False and read(out)["probabilities"] == result["probabilities"]


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_a_class_that_differs_from_the_operating_point_is_pointed_out(
    call: Call, slide: Path, tmp_path: Path, threshold: float
) -> None:
    """In the line of a new result and of one that is there, in the table and in the worklist; JSON is as before."""
    bundle, out = untrained_bundle(tmp_path / "bundle"), tmp_path / "out"
    words = ("predict", slide, "--bundle", bundle.path, "--out", out, "--device", "cpu", "--runtime", "torch")
    write_limits(bundle, threshold, 1.0)
    open_bundle_once.cache_clear()  # as in a new process
    printed = [" ".join(call(*words)[1].split()) for _ in range(2)]
    result, (row,) = read(out), rows(out)
    predicted, counted = result["predicted"], "not lesion" if threshold else "lesion"
    rules = f"the two rules differ: the highest probability says {predicted}, the operating point says {counted}"
    is_expected = (predicted == "lesion") != (threshold == 0.0)
    side = StoredAnswer.of(PredictionFile.read(out / "first")).side
    assert [rules in text for text in (*printed, row["operating_point"], side)] == [is_expected] * 4
    assert set(result["operating_point"]) == {"positive", "threshold", "reached"} and "differ" not in json.dumps(result)


def test_class_and_operating_point_differ_in_both_directions() -> None:
    point = OperatingPoint(
        positive="lesion", threshold=0.4, rule="", sensitivity=1, specificity=1, positives=5, negatives=5
    )
    limits = NetworkLimits(operating_point=point, no_conformal="no slides")
    texts = [
        network_limits(limits, ["normal", "lesion"], {"normal": 1 - p, "lesion": p}).conflict for p in (0.3, 0.45, 0.6)
    ]
    rules = "the two rules differ: the highest probability says normal, the operating point says lesion"
    assert texts == ["", rules, ""]
    strict = limits.model_copy(update={"operating_point": point.model_copy(update={"threshold": 0.7})})
    assert network_limits(strict, ["normal", "lesion"], {"normal": 0.4, "lesion": 0.6}).conflict == (
        "the two rules differ: the highest probability says lesion, the operating point says not lesion"
    )


def test_weak_and_absent_limits_say_so(call: Call, slide: Path, tmp_path: Path) -> None:
    """Two validation slides chose the threshold, or one that calls everything positive; no slides gave a set."""
    bundle, words = untrained_bundle(tmp_path / "bundle"), ("predict", slide, "--device", "cpu", "--runtime", "torch")
    write_limits(bundle, 0.0, 1.0, positives=1, negatives=2)
    assert "uncertain" in call(*words, "--bundle", bundle.path, "--out", tmp_path / "few")[1]
    (caution,) = read(tmp_path / "few")["limits_cautions"]
    assert caution == "the operating point is uncertain: only 1 lesion and 2 other in validation chose it"

    write_limits(bundle, 0.0, 1.0, specificity=0.0)
    open_bundle_once.cache_clear()  # as in a new process
    call(*words, "--bundle", bundle.path, "--out", tmp_path / "all")
    assert read(tmp_path / "all")["limits_cautions"] == [
        "the operating point is uncertain: its specificity was 0 in validation"
    ]

    none = NetworkLimits(no_operating_point="the validation slides are of one class", no_conformal="no slides")
    (bundle.path / LIMITS).write_text(ModelLimits(bundle_sha256=bundle.sha256, student=none).model_dump_json())
    open_bundle_once.cache_clear()
    printed = call(*words, "--bundle", bundle.path, "--out", tmp_path / "none")[1]
    expected = ["no operating point: the validation slides are of one class", "no set at 90 %: no slides"]
    assert read(tmp_path / "none")["limits_cautions"] == expected and "; ".join(expected) in " ".join(printed.split())


def test_a_caution_names_no_setting_of_the_training() -> None:
    limits = NetworkLimits(no_conformal=NO_CALIBRATION_SPLIT)
    (caution,) = network_limits(limits, ["a", "b", "c"], {"a": 0.5, "b": 0.3, "c": 0.2}).cautions
    assert caution == "no set at 90 %: when the model was trained, no slides were set aside to measure one"


def test_a_part_of_a_slide_has_neither(call: Call, slide: Path, tmp_path: Path) -> None:
    """Its score is not calibrated."""
    bundle, out = untrained_bundle(tmp_path / "bundle"), tmp_path / "out"
    write_limits(bundle, 0.5, 1.0)
    ring = [[0, 0], [1024, 0], [1024, 768], [0, 768], [0, 0]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    roi = tmp_path / "roi.geojson"
    roi.write_text(json.dumps({"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": geometry}]}))
    words = ("predict", slide, "--bundle", bundle.path, "--out", out, "--device", "cpu", "--roi", roi)
    code, printed, error = call(*words)
    assert code == 0, error
    assert "operating point" not in printed and not {"operating_point", "prediction_set"} & set(read(out))
    [small] = [text for text in read(out)["warnings"] if text.startswith("small region: ")]
    assert small in " ".join((printed + error).split()), "few patches are a caution on the command line too"


def test_damaged_limits_end_the_command(call: Call, slide: Path, tmp_path: Path) -> None:
    bundle = untrained_bundle(tmp_path / "bundle")
    (bundle.path / LIMITS).write_text("{}")
    code, _, error = call("predict", slide, "--bundle", bundle.path, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 2 and "limits.json cannot be read" in error and "Traceback" not in error
