"""``evaluate --cascade``: each resolution alone, the cascade, and the picture."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lrmil_training.cascade_evaluation import _warn_of_ranking
from napari_lrmil.core.ladder.rungs import open_ladder
from support.ladders import CLOSED, OPEN, ladder_bundles, write_sets
from support.phantoms import copy_cohort

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def cohort(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_cohort(phantoms, tmp_path_factory.mktemp("cohort"), test=4, val=2)


def evaluate(call: Call, cohort: Path, bundles: Path, out: Path, *more: object) -> dict[str, Any]:
    words = ("evaluate", cohort, "--bundle", bundles, "--out", out, "--device", "cpu", "--cascade", *more)
    code, printed, error = call(*words)
    assert code == 0, error
    assert "slides went up; answered at" in printed and "only 4 slides" in printed
    metrics: dict[str, Any] = json.loads((out / "cascade_metrics.json").read_text())
    return metrics


def test_costs_and_shares_are_those_of_the_sets(call: Call, cohort: Path, tmp_path: Path) -> None:
    coarse, fine = ladder_bundles(tmp_path / "bundles", 2.0, 1.0)
    metrics = evaluate(call, cohort, tmp_path / "bundles", tmp_path / "open")
    assert [rung["rung"] for rung in metrics["rungs"]] == ["5x", "10x", "20x teacher"]  # the teacher is in the bundle
    cascade, alone = metrics["cascade"], [rung["cpu_seconds_per_slide"] for rung in metrics["rungs"]]
    assert cascade["share_went_up"] == 1 and cascade["share_answered"] == {"5x": 0, "10x": 0, "20x teacher": 1}
    assert cascade["auroc"] == metrics["rungs"][-1]["auroc"] and cascade["sets_hold"]["value"] == 1
    assert alone[-1] < cascade["cpu_seconds_per_slide"] < sum(alone)  # one tissue mask for all
    assert metrics["curve"][0]["coverage"] == 0.5
    write_sets(coarse, CLOSED)
    metrics = evaluate(call, cohort, tmp_path / "bundles", tmp_path / "closed", "--no-teacher")
    cascade, first = metrics["cascade"], metrics["rungs"][0]
    assert len(metrics["rungs"]) == 2 and cascade["share_went_up"] == 0
    assert cascade["auroc"] == first["auroc"]
    assert cascade["cpu_seconds_per_slide"] == pytest.approx(first["cpu_seconds_per_slide"], rel=1e-9)
    with Image.open(tmp_path / "closed" / "cascade.png") as picture:
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50
    with (tmp_path / "closed" / "cascade_slides.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and {row["answered_by"] for row in rows} == {"5x"}
    write_sets(coarse, OPEN)
    metrics = evaluate(call, cohort, tmp_path / "bundles", tmp_path / "budget", "--budget", 0, "--no-teacher")
    assert metrics["cascade"]["share_left_open"] == 1 and metrics["budget"] == 0
    assert fine.limits is not None


def test_warnings_of_the_slides_are_summed_up_by_resolution(call: Call, cohort: Path, tmp_path: Path) -> None:
    """As `evaluate` does: each once with its slides, at the end of the terminal and in the metrics."""
    ladder_bundles(tmp_path / "bundles", 2.0, 1.0)
    words = ("evaluate", cohort, "--bundle", tmp_path / "bundles", "--out", tmp_path / "out", "--device", "cpu")
    code, _, error = call(*words, "--cascade")
    assert code == 0
    warnings = json.loads((tmp_path / "out" / "cascade_metrics.json").read_text())["warnings"]
    (coarse,) = [text for text in warnings if "little tissue" in text and text.startswith("5x (at-2): ")]
    assert coarse.startswith("5x (at-2): 4 of 4 slides: little tissue: ")
    assert coarse in " ".join(error.split())
    assert not [text for text in warnings if "teacher" in text.partition(":")[0]]


def test_a_cascade_that_ranks_worse_than_its_cheapest_network_says_so() -> None:
    """Each network may rank well, and a mixture badly: on new patients their probabilities have other levels."""
    rung = {"rung": "2.5x", "auroc": {"value": 0.93}}
    (text,) = _warn_of_ranking({"rungs": [rung], "cascade": {"auroc": {"value": 0.79}}})
    assert "the cascade ranks slides worse (AUROC 0.790) than 2.5x alone (0.930)" in text
    for value in (0.93, 0.95, None):
        assert not list(_warn_of_ranking({"rungs": [rung], "cascade": {"auroc": {"value": value}}}))


def test_a_slide_that_lacks_a_resolution_is_left_out_with_a_reason(call: Call, cohort: Path, tmp_path: Path) -> None:
    ladder_bundles(tmp_path / "bundles", 2.0, 1.0)
    lines = cohort.read_text().splitlines()
    place = next(i for i, line in enumerate(lines) if line.endswith(",test"))
    table = cohort.with_name("coarse.csv")
    table.write_text(
        "\n".join(f"{line},{'mpp' if not i else 0.8 if i == place else ''}" for i, line in enumerate(lines))
    )
    words = ("evaluate", table, "--bundle", tmp_path / "bundles", "--out", tmp_path / "out", "--device", "cpu")
    code, printed, error = call(*words, "--cascade")
    assert code == 3 and "20x teacher is missing" in error and "of 3 slides went up" in printed
    assert "20x teacher is missing" in (tmp_path / "out" / "failures.csv").read_text()


def test_what_makes_no_cascade_is_refused(call: Call, cohort: Path, tmp_path: Path) -> None:
    ladder_bundles(tmp_path / "bundles", 2.0, score=None)
    words = ("evaluate", cohort, "--bundle", tmp_path / "bundles", "--out", tmp_path / "out")
    for more, text in {
        ("--cascade",): "this model has no sets",
        ("--cascade", "--no-teacher"): "is no ladder",
        ("--cascade", "--by", "label"): "leave --by out",
        ("--budget", "3"): "add --cascade",
        ("--bundle", "demo"): "2 bundles were given",
    }.items():
        code, _, error = call(*words, *more)
        assert code == 2 and text in " ".join(error.split())
    assert open_ladder([tmp_path / "bundles"], teacher=None).rungs[-1].is_teacher
