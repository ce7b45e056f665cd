"""events.jsonl: what each event is called, its fields, and the log of a run that was stopped and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lrmil_training.report.run_record import read_training_curves
from lrmil_training.runs.event_log import EventLog, event_to_json, read_events
from napari_lrmil.core.events import Event, Failed, Finished, Metric, Notice, Partial, Progress, StageDone
from napari_lrmil.plugin.train.run_monitor import RunLogState
from support.shapes import STORED, mismatches

STAMP = {"seq": int, "attempt": int, "time": float}
LINES: dict[str, dict[str, Any]] = {
    "Progress": {"stage": str, "done": int, "total": int, "unit": str},
    "StageDone": {"stage": str, "seconds": float},
    "Metric": {"stage": str, "name": str, "value": float, "step": int},
    "Caution": {"message": str, "subject": str},
    "Finished": {"result": str},
    "Failed": {"message": str, "subject": str, "step": str},
}


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            Progress("teacher", 1, 6, "epochs", seconds_left=2.5),
            {"event": "Progress", "stage": "teacher", "done": 1, "total": 6, "unit": "epochs"},
        ),
        (StageDone("stage1", 2.5), {"event": "StageDone", "stage": "stage1", "seconds": 2.5}),
        (
            Metric("stage2", "val/auroc", 0.75, 3),
            {"event": "Metric", "stage": "stage2", "name": "val/auroc", "value": 0.75, "step": 3},
        ),
        (Notice("pale", "s.tif"), {"event": "Caution", "message": "pale", "subject": "s.tif"}),
        (Partial(None), {"event": "Partial", "result": None}),
        (Finished(Path("run")), {"event": "Finished", "result": "run"}),
        (
            Failed("no slide", "s", "features", ValueError()),
            {"event": "Failed", "message": "no slide", "subject": "s", "step": "features"},
        ),
    ],
)
def test_an_event_as_a_line(event: Event, line: dict[str, Any]) -> None:
    assert event_to_json(event) == line


def test_lines_are_numbered_and_dated(tmp_path: Path) -> None:
    for _ in range(2):
        with EventLog(tmp_path) as log:
            log.write(StageDone("teacher", 1.0))
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["seq"], line["attempt"], line["event"]) for line in lines] == [
        (0, 0, "StageDone"),
        (1, 1, "StageDone"),
    ]
    assert all(mismatches(line, STAMP | {"event": str} | LINES["StageDone"]) == [] for line in lines)


@pytest.fixture(scope="module")
def stored() -> list[dict[str, Any]]:
    """Return the lines of the stored run."""
    return read_events(STORED / "run" / "events.jsonl")


def test_lines_of_the_stored_log(stored: list[dict[str, Any]]) -> None:
    assert len(stored) == 722 and {line["attempt"] for line in stored} == {0, 1}
    for line in stored:
        assert mismatches(line, STAMP | {"event": str} | LINES[line["event"]]) == []


def test_the_window_reads_the_stored_log(stored: list[dict[str, Any]]) -> None:
    story = RunLogState()
    story.update(stored)
    assert story.finished and story.attempt == 1 and not story.notices
    assert list(story.done) == [
        "HR features",
        "teacher",
        "stage1",
        "LR features",
        "stage2",
        "stage3",
        "labels_only",
        "evaluation",
    ]
    assert list(story.failures) == ["broken"] and "not a slide that OpenSlide can open" in story.failures["broken"]
    assert story.earlier["teacher"] == pytest.approx(5.131454565000013)


def test_the_report_reads_the_stored_log(stored: list[dict[str, Any]]) -> None:
    curves = {(curve.stage, curve.number): curve for curve in read_training_curves(stored)}
    assert {fit: len(curve.series["select"]) for fit, curve in curves.items()} == {
        ("teacher", 0): 6,
        ("stage1", 0): 2,
        ("stage2", 0): 4,
        ("stage3", 0): 1,
        ("stage3", 1): 1,
        ("labels_only", 0): 6,
    }
    teacher = curves["teacher", 0].series
    assert list(teacher) == ["val/auroc", "val/ce", "select", "train/ce"]
    assert teacher["val/auroc"][0] == pytest.approx(0.2222222238779068)
