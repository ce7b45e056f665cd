"""Option ``--by patient`` of ``predict``: one answer for all slides of a patient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from napari_lrmil.cli.console import print_notice, print_result
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.text_escapes import printable

if TYPE_CHECKING:
    from napari_lrmil.core.results.patient_answers import PatientSlide

PATIENT = "patient"
ByOption = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="patient: also one answer for all slides of each patient of a cohort table"),
]


@dataclass(frozen=True)
class PatientRequest:
    """Patients of a table whose answers are written after the slides.

    Attributes
    ----------
    patients
        Patient -> slides.
    bundle
        Folder of the model.
    """

    patients: Mapping[str, Sequence[PatientSlide]]
    bundle: Path

    def write(self, folder: Path) -> None:
        """Write ``patients.csv`` and ``patients.json`` from the results so far, and print what is missing."""
        from napari_lrmil.core.models.bundle import Bundle
        from napari_lrmil.core.results.patient_answers import (
            PATIENTS_TABLE,
            PatientModel,
            answer_patients,
            write_patient_answers,
        )

        model = PatientModel.of(Bundle(self.bundle))
        answers = answer_patients(folder, self.patients, model)
        write_patient_answers(folder, answers, model)
        for answer in answers:
            if answer.reason:
                print_notice(f"patient {printable(answer.patient)}", answer.reason)
            if answer.cohort_distance is not None and answer.cohort_distance.is_outside:
                distance = answer.cohort_distance.text.replace("slides", "patients")
                print_notice(f"patient {printable(answer.patient)}", f"{distance}; check stain, scanner and tissue")
        n_answers = sum(bool(answer.slides) for answer in answers)
        patients = format_count(len(answers), "patient has", "patients have")
        print_result(f"{n_answers} of {patients} an answer -> {folder / PATIENTS_TABLE}")


def patient_request(table: Path | None, slides: Iterable[Path], bundle: Path) -> PatientRequest | None:
    """Return the patients of a table whose answers are written; None without a table."""
    if table is None:
        return None
    from lrmil_training.data.patient_slides import read_patient_slides

    return PatientRequest(read_patient_slides(table, set(slides)), bundle)


def require_patient_table(by: str | None, slides: Sequence[Path], files: Mapping[str, Path | None]) -> Path | None:
    """Return the cohort table whose patients get an answer; None without the option.

    Raises
    ------
    ConfigError
        If the option has another value, or what was given is not one table of whole slides.
    """
    from napari_lrmil.core.errors import ConfigError
    from napari_lrmil.core.slides.slide_files import is_table

    if by is None:
        return None
    if by != PATIENT:
        raise ConfigError(f"--by {by}: predict answers by patient only; use --by {PATIENT}")
    if len(slides) != 1 or not is_table(slides[0]):
        raise ConfigError(f"--by {PATIENT} reads the column {PATIENT} of a cohort table; give one table (CSV) alone")
    parts = [f"--{name}" for name, file in files.items() if file is not None]
    if parts:
        raise ConfigError(f"{', '.join(parts)} is about one slide, and --by {PATIENT} about all of a patient; use one")
    return slides[0]
