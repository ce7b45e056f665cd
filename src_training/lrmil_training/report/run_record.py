"""Content of a run folder, read for the report; files that a killed run did not write yet count as empty."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrmil_training.data.patient_groups import count_patients
from lrmil_training.evaluation.comparison_table import compared_method
from lrmil_training.evaluation.groups import BY
from lrmil_training.evaluation.summary import is_method_entry
from lrmil_training.runs.event_log import CONFIG, EVENTS, METRICS, SELECTION, SLIDES, WARNINGS, read_events
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Finished, Metric, Progress, StageDone
from napari_lrmil.core.models.card import AGGREGATOR_NAMES

SPLIT_ORDER = ("test", "all", "val", "train")  # held-out slides first: readers look for them
METHOD_LABELS = {
    "teacher": "HR teacher",
    **{compared_method(name): f"HR teacher, {text}" for name, text in AGGREGATOR_NAMES.items()},
    "student": "LR student",
    "labels_only": "LR, labels only",
    "labels_only_finetuned": "LR, labels only, fine-tuned",
    "stage1_only": "LR, stage 1 only",
    "stage2_only": "LR, stage 2 only",
    "both": "LR, stages 1 and 2",
}
SERIES_STAGE = "runs"  # the stage whose progress counts the runs of a series
SELECTION_METRIC = "select"  # the metric by which a stage chooses its epoch; higher is better


@dataclass(frozen=True)
class RunRecord:
    """Content of a run folder.

    Attributes
    ----------
    folder
        The run folder.
    config, config_text
        ``config.yaml``, as values and as text.
    events
        Lines of ``events.jsonl``.
    methods
        Method -> split -> metrics; empty for a series of folds or seeds, and before the evaluation.
    protocol
        How slides were split; None if the run does not state it.
    runs, summary
        For a series: the metrics of each run, and their summary.
    slides
        Rows of ``slides.json``.
    groups
        Column -> groups of slides with their figures, see `measure_groups`; empty if none were asked for.
    selection
        Content of ``selection.json``; empty without an inner cross-validation.
    warnings
        What makes the figures of an evaluation doubtful, such as that no model was named.
    """

    folder: Path
    config: Mapping[str, Any]
    config_text: str
    events: Sequence[Mapping[str, Any]]
    methods: Mapping[str, Mapping[str, Any]]
    protocol: Mapping[str, Any] | None
    runs: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Mapping[str, Any]]
    slides: Sequence[Mapping[str, Any]]
    groups: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    selection: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()

    @property
    def splits(self) -> list[str]:
        """Evaluated splits, in the order of `SPLIT_ORDER`."""
        evaluated = {split for splits in (self.methods or self.summary).values() for split in splits}
        return [split for split in SPLIT_ORDER if split in evaluated]

    @property
    def names(self) -> list[str]:
        """Methods, teacher and student first."""
        methods = dict.fromkeys([*self.methods, *self.summary, *(m for s in self.slides for m in s["methods"])])
        return sorted(methods, key=method_rank)

    @property
    def finished(self) -> bool:
        """Whether the last attempt finished."""
        return bool(self.events) and self.events[-1].get("event") == Finished.wire_name


def method_label(method: str) -> str:
    """Return the display name of a method."""
    return METHOD_LABELS.get(method) or f"LR, {method.replace('_', ' ')}"


def method_rank(method: str) -> int:
    """Return the position of a method in tables: that in `METHOD_LABELS`, or after all of them."""
    return list(METHOD_LABELS).index(method) if method in METHOD_LABELS else len(METHOD_LABELS)


def read_run(folder: Path) -> RunRecord:
    """Return the content of a run folder.

    Raises
    ------
    LrmilError
        If a file exists and is damaged.
    """
    import yaml

    config = folder / CONFIG
    text = config.read_text(encoding="utf-8") if config.exists() else ""
    metrics = _read_json(folder / METRICS) or {}
    slides = _read_json(folder / SLIDES) or []
    return RunRecord(
        folder=folder,
        config=yaml.safe_load(text) or {},
        config_text=text,
        events=read_events(folder / EVENTS),
        methods={name: entry for name, entry in metrics.items() if name != "summary" and is_method_entry(entry)},
        protocol=metrics.get("protocol"),
        runs=metrics.get("runs") or [],
        summary=metrics.get("summary") or {},
        slides=slides["slides"] if isinstance(slides, dict) else slides,
        groups=metrics.get(BY) or {},
        selection=_read_json(folder / SELECTION) or {},
        warnings=metrics.get(WARNINGS) or (),
    )


def _read_json(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LrmilError(f"{path}: not JSON ({error}); evaluate again, or delete it") from error


# ---------------------------------------------------------------- training curves


@dataclass
class TrainingCurve:
    """Metrics of one fit of one stage.

    Attributes
    ----------
    stage
        Name of the stage.
    number
        Number of earlier fits of this stage; methods that differ in a loss term fit it again.
    run
        Label of the run in a series; empty otherwise.
    series
        Metric -> epoch, from 0 -> value.
    """

    stage: str
    number: int
    run: str
    series: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def chosen(self) -> int | None:
        """Epoch of the stored checkpoint: the first with the highest selection metric."""
        finite = {step: value for step, value in self.series.get(SELECTION_METRIC, {}).items() if math.isfinite(value)}
        return max(finite, key=lambda step: (finite[step], -step)) if finite else None

    @property
    def title(self) -> str:
        """Display name: stage, number of the fit, run."""
        fit = f", fit {self.number + 1}" if self.number else ""
        return " · ".join(filter(None, [self.stage + fit, self.run]))


class CurveReader:
    """Accumulates the training curves of an event log, line by line.

    Epochs that a later attempt repeats replace the earlier values. Every attempt logs the end of each stage, also of a
    stage that it skips, so fits are counted from 0 in each attempt. In a series they are counted from 0 in each run.
    """

    def __init__(self) -> None:
        self._fits: dict[tuple[str, int, str], TrainingCurve] = {}
        self._ended: Counter[str] = Counter()
        self._previous: tuple[Any, int] = (None, -1)
        self._run = ""

    @property
    def curves(self) -> list[TrainingCurve]:
        """Fits so far that have a training or validation metric."""
        return [curve for curve in self._fits.values() if any("/" in name for name in curve.series)]

    def add(self, line: Mapping[str, Any]) -> None:
        """Add the next line of the log."""
        attempt, seq = line.get("attempt"), int(line.get("seq", self._previous[1]))
        stage = str(line.get("stage", ""))
        if attempt != self._previous[0] or seq < self._previous[1]:
            self._ended, self._run = Counter(), ""
        self._previous = attempt, seq
        if line.get("event") == Progress.wire_name and stage == SERIES_STAGE:
            self._ended, self._run = Counter(), f"run {int(line['done']) + 1}"
        elif line.get("event") == StageDone.wire_name:
            self._ended[stage] += 1
        elif line.get("event") == Metric.wire_name:
            key = (stage, self._ended[stage], self._run)
            curve = self._fits.setdefault(key, TrainingCurve(*key))
            _set_step(curve.series.setdefault(str(line["name"]), {}), int(line["step"]), float(line["value"]))


def read_training_curves(events: Iterable[Mapping[str, Any]]) -> list[TrainingCurve]:
    """Return every fit of a log; see `CurveReader`."""
    reader = CurveReader()
    for line in events:
        reader.add(line)
    return reader.curves


def _set_step(series: dict[int, float], step: int, value: float) -> None:
    for later in [s for s in series if s >= step]:  # the stage was resumed at `step`; later values are obsolete
        del series[later]
    series[step] = value


# ---------------------------------------------------------------- slides


def count_by_split(record: RunRecord) -> list[dict[str, Any]]:
    """Return a row per split: slides, patients, and slides of each class, in the order of `class_names`."""
    labels = class_names(record)
    rows = []
    for split in ("train", "val", "calibration", "test", "all"):
        slides = [s for s in record.slides if s["split"] == split]
        if slides:
            patients = count_patients(s["patient"] for s in slides)
            counts = {label: sum(s["label"] == label for s in slides) for label in labels}
            rows.append({"split": split, "slides": len(slides), "patients": patients, "classes": counts})
    return rows


def class_names(record: RunRecord) -> list[str]:
    """Return the classes in the order of the logits; empty before the evaluation."""
    for slide in record.slides:
        for result in slide["methods"].values():
            return list(result["probabilities"])
    for splits in record.methods.values():
        for metrics in splits.values():
            return list(metrics["per_class"])
    return []


def probability_distance(slide: Mapping[str, Any]) -> float | None:
    """Return half the summed absolute differences of the student's and the teacher's class probabilities, 0 to 1.

    None if student or teacher has no result for the slide. For two classes it is the difference of one probability.
    """
    results = slide["methods"]
    if "student" not in results or "teacher" not in results:
        return None
    student, teacher = results["student"]["probabilities"], results["teacher"]["probabilities"]
    return float(sum(abs(student[c] - teacher[c]) for c in student) / 2)


def sort_by_probability_distance(record: RunRecord, split: str) -> list[Mapping[str, Any]]:
    """Return the slides of a split, those with the largest `probability_distance` first.

    Without a teacher, slides with the lowest probability of their true class come first.
    """

    def key(slide: Mapping[str, Any]) -> float:
        distance = probability_distance(slide)
        if distance is not None:
            return distance
        result = next(iter(slide["methods"].values()))
        return 1 - float(result["probabilities"][slide["label"]])

    return sorted((s for s in record.slides if s["split"] == split), key=lambda s: (-key(s), s["slide"]))
