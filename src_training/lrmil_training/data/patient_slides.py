"""Slides of each patient in a cohort table, for predictions by patient."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from lrmil_training.data.cohort import CohortSlide, read_slides
from lrmil_training.data.patient_groups import bags_by_patient
from napari_lrmil.core.errors import CohortError
from napari_lrmil.core.results.patient_answers import PatientSlide
from napari_lrmil.core.text_escapes import printable


def read_patient_slides(table: Path, given: Collection[Path]) -> dict[str, list[PatientSlide]]:
    """Return patient -> slides of a cohort table, in the order of the table.

    Parameters
    ----------
    table
        Table with the columns ``slide`` and ``patient``.
    given
        The slides that are predicted. A row that repeats one, such as a further file of a DICOM series, is not.

    Raises
    ------
    CohortError
        If a slide has no patient, a patient no slide, or two slides share a name.
    """
    rows = read_slides(table).slides
    empty = [s for s in rows if not s.patient]
    if empty:
        first = printable(empty[0].path.name)
        reason = f"the column patient is missing or empty for {len(empty)} of {len(rows)} slides, first {first}"
        raise CohortError(table, f"{reason}; fill it in, or leave out --by patient")
    used = [s for s in rows if s.path in given]
    _require_own_names(table, used)
    patients = bags_by_patient([s.patient for s in used])
    lost = [patient for patient in bags_by_patient([s.patient for s in rows]) if patient not in patients]
    if lost:
        reason = f"patient {printable(lost[0])} has no slide but one that repeats the slide of another row"
        raise CohortError(table, f"{reason}; correct the column patient, or delete the row")
    return {patient: [_patient_slide(used[i]) for i in indices] for patient, indices in patients.items()}


def _require_own_names(table: Path, slides: list[CohortSlide]) -> None:
    """Raise `CohortError` if two slides share a name: a patient would get the result of another."""
    first: dict[str, CohortSlide] = {}
    for slide in slides:
        other = first.setdefault(slide.name.casefold(), slide)
        if other is not slide:
            raise CohortError(
                table,
                f"two slides are named {slide.name}: their results would overwrite each other, and a patient would get "
                "those of another; rename one",
            )


def _patient_slide(slide: CohortSlide) -> PatientSlide:
    return PatientSlide(slide.name, printable(slide.path.name or slide.path.resolve().name))
