"""What a run folder holds, read for its report; whatever a killed run did not come to write is simply not there."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrmil_training.evaluation.summary import is_method_entry
from lrmil_training.runs.event_log import CONFIG, EVENTS, METRICS, SLIDES, read_events
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Finished, Metric, Progress, StageDone

SPLIT_ORDER = ("test", "all", "val", "train")  # in the order of what a reader wants first
METHOD_LABELS = {
    "teacher": "HR teacher",
    "student": "LR student",
    "labels_only": "LR, labels only",
    "labels_only_finetuned": "LR, labels only, fine-tuned",
    "stage1_only": "LR, stage 1 only",
    "stage2_only": "LR, stage 2 only",
    "both": "LR, stages 1 and 2",
}
SERIES_STAGE = "runs"  # the stage whose progress counts the runs of a series
SELECTION_METRIC = "select"  # the figure by which a stage chose its epoch; higher is better


@dataclass(frozen=True)
class RunRecord:
    """A run folder's content.

    Attributes
    ----------
    folder
        The run's.
    config, config_text
        ``config.yaml``, as values and as it stands.
    events
        Lines of ``events.jsonl``.
    methods
        Method -> split -> figures; empty where the run has folds or seeds, or has not come so far.
    protocol
        How slides were parted; None where the run does not say.
    runs, summary
        Of a run with folds or seeds: the figures of each, and those over all.
    slides
        Rows of ``slides.json``.
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

    @property
    def splits(self) -> list[str]:
        """The splits that were measured, the most telling first."""
        there = {split for splits in (self.methods or self.summary).values() for split in splits}
        return [split for split in SPLIT_ORDER if split in there]

    @property
    def names(self) -> list[str]:
        """The methods, teacher and student first."""
        told = dict.fromkeys([*self.methods, *self.summary, *(m for s in self.slides for m in s["methods"])])
        return sorted(
            told, key=lambda name: list(METHOD_LABELS).index(name) if name in METHOD_LABELS else len(METHOD_LABELS)
        )

    @property
    def finished(self) -> bool:
        """Whether the last attempt ended well."""
        return bool(self.events) and self.events[-1].get("event") == Finished.wire_name


def method_label(method: str) -> str:
    """Return a method's name for people."""
    return METHOD_LABELS.get(method) or f"LR, {method.replace('_', ' ')}"


def read_run(folder: Path) -> RunRecord:
    """Return what the folder holds.

    Raises
    ------
    LrmilError
        Where a file is there and cannot be understood.
    """
    import yaml

    config = folder / CONFIG
    text = config.read_text(encoding="utf-8") if config.exists() else ""
    found = _read_json(folder / METRICS) or {}
    slides = _read_json(folder / SLIDES) or []
    return RunRecord(
        folder=folder,
        config=yaml.safe_load(text) or {},
        config_text=text,
        events=read_events(folder / EVENTS),
        methods={name: its for name, its in found.items() if name != "summary" and is_method_entry(its)},
        protocol=found.get("protocol"),
        runs=found.get("runs") or [],
        summary=found.get("summary") or {},
        slides=slides["slides"] if isinstance(slides, dict) else slides,
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
    """One fit of one stage: name of a figure -> epoch -> value."""

    stage: str
    number: int  # fits of this stage that came before: methods that differ in a loss term fit it anew
    where: str  # which run of a series
    series: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def chosen(self) -> int | None:
        """The epoch that was kept: the first with the highest selection figure."""
        finite = {step: value for step, value in self.series.get(SELECTION_METRIC, {}).items() if math.isfinite(value)}
        return max(finite, key=lambda step: (finite[step], -step)) if finite else None

    @property
    def title(self) -> str:
        """What it is, for people."""
        again = f", fit {self.number + 1}" if self.number else ""
        return " · ".join(filter(None, [self.stage + again, self.where]))


class CurveReader:
    """Takes the lines of an event log one by one, as they come, and keeps every fit.

    What later attempts did anew overrides earlier epochs. A stage that has ended says so in every attempt, done again
    or not, so its fits are counted anew in each. In a series the runs count themselves.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[str, int, str], TrainingCurve] = {}
        self._ended: Counter[str] = Counter()
        self._before: tuple[Any, int] = (None, -1)
        self._where = ""

    @property
    def curves(self) -> list[TrainingCurve]:
        """Every fit so far that has a figure of training or validation."""
        return [curve for curve in self._found.values() if any("/" in name for name in curve.series)]

    def take(self, line: Mapping[str, Any]) -> None:
        """Take the next line."""
        now = line.get("attempt"), int(line.get("seq", self._before[1]))
        stage = str(line.get("stage", ""))
        if now[0] != self._before[0] or now[1] < self._before[1]:
            self._ended, self._where = Counter(), ""
        self._before = now
        if line.get("event") == Progress.wire_name and stage == SERIES_STAGE:
            self._ended, self._where = Counter(), f"run {int(line['done']) + 1}"
        elif line.get("event") == StageDone.wire_name:
            self._ended[stage] += 1
        elif line.get("event") == Metric.wire_name:
            key = (stage, self._ended[stage], self._where)
            curve = self._found.setdefault(key, TrainingCurve(*key))
            _set_step(curve.series.setdefault(str(line["name"]), {}), int(line["step"]), float(line["value"]))


def read_training_curves(events: Iterable[Mapping[str, Any]]) -> list[TrainingCurve]:
    """Return every fit of a log; see `CurveReader`."""
    reader = CurveReader()
    for line in events:
        reader.take(line)
    return reader.curves


def _set_step(series: dict[int, float], step: int, value: float) -> None:
    for later in [s for s in series if s >= step]:  # the stage went back: what came after is no part of it
        del series[later]
    series[step] = value


# ---------------------------------------------------------------- slides


def count_by_split(record: RunRecord) -> list[dict[str, Any]]:
    """Return a row per split: slides, patients, and slides of each class, the classes in one order throughout."""
    labels = class_names(record)
    rows = []
    for split in ("train", "val", "test", "all"):
        its = [s for s in record.slides if s["split"] == split]
        if its:
            counts = {label: sum(s["label"] == label for s in its) for label in labels}
            rows.append(
                {"split": split, "slides": len(its), "patients": len({s["patient"] for s in its}), "classes": counts}
            )
    return rows


def class_names(record: RunRecord) -> list[str]:
    """Return the classes in the order of the logits."""
    for s in record.slides:
        for told in s["methods"].values():
            return list(told["probabilities"])
    for splits in record.methods.values():
        for figures in splits.values():
            return list(figures["per_class"])
    return []


def probability_distance(slide: Mapping[str, Any]) -> float | None:
    """Return half the summed absolute differences of the student's and the teacher's class probabilities, 0 to 1.

    None if one of them did not see the slide. For two classes it is the difference of one probability.
    """
    told = slide["methods"]
    if "student" not in told or "teacher" not in told:
        return None
    ours, theirs = told["student"]["probabilities"], told["teacher"]["probabilities"]
    return float(sum(abs(ours[c] - theirs[c]) for c in ours) / 2)


def sort_by_probability_distance(record: RunRecord, split: str) -> list[Mapping[str, Any]]:
    """Return the slides of a split, those first whose probabilities by student and teacher differ most.

    Without a teacher those come first whose own class the student gives least.
    """

    def key(slide: Mapping[str, Any]) -> float:
        apart = probability_distance(slide)
        if apart is not None:
            return apart
        told = next(iter(slide["methods"].values()))
        return 1 - float(told["probabilities"][slide["label"]])

    return sorted((s for s in record.slides if s["split"] == split), key=lambda s: (-key(s), s["slide"]))
