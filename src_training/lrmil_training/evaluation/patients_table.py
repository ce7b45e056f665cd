"""File ``patients.csv`` of an evaluation: the answer of each method for each patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrmil_training.data.cohort import UNLABELLED, Cohort, CohortSlide
from lrmil_training.data.patient_groups import bags_by_patient
from lrmil_training.evaluation.evaluate import Results, SlideResult, Temperatures, patient_logits, pooling_of
from lrmil_training.evaluation.patients import group_slides, scale_logits
from napari_lrmil.core.csv_files import write_csv
from napari_lrmil.core.results.patient_answers import PATIENTS_TABLE

HEADER = ("patient", "label", "split", "method", "predicted")
TAIL = ("n_slides", "n_left_out", "slides", "left_out", "pooling", "reason")


@dataclass(frozen=True)
class _Line:
    """A line of the table: slides that were used and slides that could not be read."""

    patient: str
    split: str
    used: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    label: str = ""
    method: str = ""
    predicted: str = ""
    probabilities: tuple[float, ...] = ()
    pooling: str = ""
    reason: str = ""

    def cells(self, n_classes: int) -> list[Any]:
        numbers = [f"{value:.6f}" for value in self.probabilities] or [""] * n_classes
        head = [self.patient, self.label, self.split, self.method, self.predicted, *numbers]
        return [
            *head,
            len(self.used),
            len(self.missing),
            *map("; ".join, (self.used, self.missing)),
            self.pooling,
            self.reason,
        ]


def write_patients_table(
    folder: Path, cohort: Cohort, results: Results, temperatures: Temperatures, failed: Sequence[CohortSlide] = ()
) -> None:
    """Write ``patients.csv``, a row for each patient and method; delete it if no patient has several slides.

    Parameters
    ----------
    folder
        Folder of the evaluation.
    cohort
        Slides with results.
    results, temperatures
        See `evaluate_methods`.
    failed
        Slides that could not be read. The answer is that of the patient's other slides, and the row names these.
    """
    slides = [*cohort.slides, *failed]
    if len(bags_by_patient([s.patient for s in slides])) == len(slides):
        (folder / PATIENTS_TABLE).unlink(missing_ok=True)
        return
    missing = {
        patient: tuple(failed[row].name for row in rows)
        for patient, rows in bags_by_patient([s.patient for s in failed]).items()
    }
    lines = [
        line
        for method, slide_results in results.items()
        for line in _method_lines(cohort, method, slide_results, temperatures[method], missing)
    ]
    answered = {line.patient for line in lines}
    for patient, names in missing.items():
        if patient not in answered:
            split = next(s.split for s in failed if s.name == names[0])
            lines.append(_Line(patient, split, missing=names, reason="none of its slides could be read"))
    header = [*HEADER, *(f"probability_{name}" for name in cohort.classes), *TAIL]
    write_csv(folder / PATIENTS_TABLE, [header, *(line.cells(len(cohort.classes)) for line in lines)])


def _method_lines(
    cohort: Cohort,
    method: str,
    results: Sequence[SlideResult],
    temperature: float | None,
    missing: Mapping[str, tuple[str, ...]],
) -> list[_Line]:
    rows = [r.row for r in results]
    bags = group_slides([row.patient for row in rows], [cohort.target(row) for row in rows])
    lines = []
    probabilities = scale_logits(patient_logits(results, bags.all), temperature)
    for bag, values in zip(bags.all, probabilities, strict=True):
        slides = tuple(rows[i].name for i in bag.rows)
        label = "" if bag.target in (None, UNLABELLED) else cohort.classes[bag.target]
        reason = "slides of several labels: not in the figures" if bag.target is None else ""
        predicted, split = cohort.classes[int(values.argmax())], rows[bag.rows[0]].split
        lines.append(
            _Line(
                *(bag.patient, split, slides, missing.get(bag.patient, ()), label, method, predicted),
                probabilities=tuple(values.tolist()),
                pooling=pooling_of(results),
                reason=reason,
            )
        )
    return lines
