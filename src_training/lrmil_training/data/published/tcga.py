"""Cohort of TCGA: slides as GDC's transfer tool lays them down, labels from the sample sheet and the clinical table.

A diagnostic slide is named ``TCGA-AA-BBBB-01Z-00-DX1.UUID.svs``: tissue source site, patient, sample type, and the kind
of section. Sample types from 10 on are normal tissue or controls, and TS, BS and MS are frozen sections.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lrmil_training.data.published.table import (
    Omission,
    PublishedCohort,
    PublishedSlide,
    class_notice,
    files_of,
    without_copies,
)
from napari_lrmil.core.errors import CohortError
from napari_lrmil.core.formatting import shorten

SHEET_NAME = re.compile(r"gdc_sample_sheet.*\.tsv", re.IGNORECASE)
CLINICAL_NAME = re.compile(r"clinical\.tsv", re.IGNORECASE)
SHEET_COLUMNS = ("File ID", "File Name", "Project ID", "Case ID")
NORMAL_COLUMNS = ("Sample Type", "Tissue Type")  # before and after GDC's change of 2024
NORMAL_WORDS = ("solid tissue normal", "normal")
CASE_COLUMNS = ("case_submitter_id", "cases.submitter_id")
DIAGNOSIS_COLUMNS = ("primary_diagnosis", "diagnoses.primary_diagnosis")
PRIMARY_COLUMNS = ("diagnosis_is_primary_disease", "diagnoses.diagnosis_is_primary_disease")
BARCODE = re.compile(
    r"(?P<patient>TCGA-(?P<site>[A-Z0-9]{2})-[A-Z0-9]{4})-(?P<sample>\d{2})[A-Z]-\d{2}-(?P<kind>[A-Z]{2})[A-Z0-9]+"
)
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
PRIMARY_TUMOR, FIRST_NORMAL = "01", "10"
TASKS: dict[str, dict[str, str]] = {  # task -> project -> class; no class: the diagnosis decides
    "nsclc": {"TCGA-LUAD": "LUAD", "TCGA-LUSC": "LUSC"},
    "rcc": {"TCGA-KIRC": "KIRC", "TCGA-KIRP": "KIRP", "TCGA-KICH": "KICH"},
    "brca": {"TCGA-BRCA": ""},
}
BRCA_CLASSES = {"infiltrating duct carcinoma, nos": "IDC", "lobular carcinoma, nos": "ILC"}


@dataclass
class _Sheet:
    """Rows of the sample sheet by file name."""

    path: Path
    rows: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    omissions: list[Omission] = field(default_factory=list)


def read_tcga(
    folder: Path, *, task: str | None = None, sheet: Path | None = None, clinical: Path | None = None
) -> PublishedCohort:
    """Return the cohort in a folder of TCGA slides. The tissue source site becomes the column ``site``.

    Parameters
    ----------
    folder
        Folder of the download, with a folder per slide or without.
    task
        ``nsclc``, ``rcc`` or ``brca``; by default that of the projects in the sample sheet.
    sheet, clinical
        GDC's sample sheet, and its clinical table, which only ``brca`` needs. By default they are searched in `folder`.

    Raises
    ------
    CohortError
        If a table is missing, lacks a column or is of another download, or no slide can be used.
    """
    files = files_of(folder)
    slides = [path for path in files if path.suffix.lower() == ".svs"]
    if not slides:
        raise CohortError(folder, "no .svs file; expected the folder of `gdc-client download -m MANIFEST`")
    stated = _read_sheet(sheet or _only_file(folder, files, SHEET_NAME, "sample sheet", "--sheet"))
    if not {path.name for path in slides} & set(stated.rows):
        raise CohortError(
            stated.path, f"names none of the {len(slides)} slides here; it is of another release or another cart"
        )
    projects = {row["Project ID"] for rows in stated.rows.values() for row in rows}
    classes = TASKS[_task(stated.path, projects, task)]
    diagnoses: Mapping[str, set[str]] = {}
    if "" in classes.values():
        clinical = clinical or _only_file(folder, files, CLINICAL_NAME, "clinical table", "--clinical")
        diagnoses = _read_diagnoses(clinical)
        _require_known_cases(clinical, diagnoses, stated)
    rows, omissions = _usable(slides, stated, classes, diagnoses)
    rows, copies = without_copies(rows)
    omissions += [*copies, *_absent(files, stated)]
    if not rows:
        first = omissions[0]
        raise CohortError(folder, f"none of the {len(slides)} slides can be used, first {first.name}: {first.reason}")
    return PublishedCohort(tuple(rows), tuple(omissions), notices=class_notice(rows))


def _only_file(folder: Path, files: Sequence[Path], name: re.Pattern[str], kind: str, option: str) -> Path:
    matches = [path for path in files if name.fullmatch(path.name)]
    if len(matches) != 1:
        raise CohortError(
            folder, f"{len(matches) or 'no'} {kind}s of GDC here; download it from the cart, or name it with {option}"
        )
    return matches[0]


# ---------------------------------------------------------------- tables of GDC


def _read_tsv(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [
                {key: (value or "").strip() for key, value in row.items() if isinstance(key, str)}
                for row in csv.DictReader(file, delimiter="\t")
            ]
    except (OSError, ValueError, csv.Error) as error:
        raise CohortError(path, f"cannot be read ({error}); expected a table of GDC, separated by tabs") from error


def _read_sheet(path: Path) -> _Sheet:
    rows = _read_tsv(path)
    columns = set(rows[0]) if rows else set()
    if missing := [column for column in SHEET_COLUMNS if column not in columns]:
        raise CohortError(
            path, f"no column named {', '.join(missing)}; expected GDC's sample sheet; this one is of another release"
        )
    if not columns & {*NORMAL_COLUMNS}:
        names = " or ".join(NORMAL_COLUMNS)
        raise CohortError(path, f"no column named {names}; expected GDC's sample sheet; this one is of another release")
    sheet = _Sheet(path)
    for row in rows:
        name = row["File Name"]
        if not name.lower().endswith(".svs"):
            sheet.omissions.append(Omission(name, "row of the sample sheet that is no slide"))
        elif row not in sheet.rows.setdefault(name, []):
            sheet.rows[name].append(row)
        else:
            sheet.omissions.append(Omission(name, "repeated row of the sample sheet"))
    return sheet


def _task(path: Path, projects: set[str], task: str | None) -> str:
    if task is not None:
        return task
    matches = [name for name, classes in TASKS.items() if projects & set(classes)]
    if len(matches) != 1:
        seen = shorten(", ".join(sorted(projects)))
        raise CohortError(path, f"its projects are {seen}; choose the question with --task {', '.join(TASKS)}")
    return matches[0]


def _read_diagnoses(path: Path) -> dict[str, set[str]]:
    """Return case -> its diagnoses; those of other diseases of the patient are left out if the table states them."""
    rows = _read_tsv(path)
    case, diagnosis = (_column(path, rows, names) for names in (CASE_COLUMNS, DIAGNOSIS_COLUMNS))
    primary = next((name for name in PRIMARY_COLUMNS if rows and name in rows[0]), None)
    diagnoses: dict[str, set[str]] = {}
    for row in rows:
        is_other = primary is not None and row[primary].lower() == "false"
        if row[diagnosis].strip("'-") and not is_other:
            diagnoses.setdefault(row[case], set()).add(row[diagnosis])
    return diagnoses


def _column(path: Path, rows: Sequence[Mapping[str, str]], names: Sequence[str]) -> str:
    column = next((name for name in names if rows and name in rows[0]), None)
    if column is None:
        raise CohortError(path, f"no column named {' or '.join(names)}; expected clinical.tsv of GDC's cart")
    return column


def _require_known_cases(clinical: Path, diagnoses: Mapping[str, set[str]], sheet: _Sheet) -> None:
    cases = {case.strip() for rows in sheet.rows.values() for row in rows for case in row["Case ID"].split(",")}
    if not cases & set(diagnoses):
        raise CohortError(
            clinical,
            f"has a diagnosis of none of the {len(cases)} cases in the sample sheet; it is of another release or cart",
        )


# ---------------------------------------------------------------- slides


def _usable(
    slides: Sequence[Path], sheet: _Sheet, classes: Mapping[str, str], diagnoses: Mapping[str, set[str]]
) -> tuple[list[PublishedSlide], list[Omission]]:
    """Return the rows of the slides that can be used, and why the others cannot."""
    rows: list[PublishedSlide] = []
    omissions = list(sheet.omissions)
    names: set[str] = set()
    for path in slides:
        barcode = BARCODE.match(path.name)
        reason = _fault(path, barcode, sheet.rows.get(path.name, []), classes)
        if not reason and path.name in names:
            reason = "second copy of a slide"
        if reason or barcode is None:
            omissions.append(Omission(path.name, reason))
            continue
        label, reason = _label(sheet.rows[path.name][0]["Project ID"], barcode["patient"], classes, diagnoses)
        if reason:
            omissions.append(Omission(path.name, reason))
            continue
        names.add(path.name)
        rows.append(PublishedSlide(path, barcode["patient"], label, site=barcode["site"]))
    return rows, omissions


def _fault(
    path: Path, barcode: re.Match[str] | None, rows: Sequence[Mapping[str, str]], classes: Mapping[str, str]
) -> str:
    """Return why a slide cannot be used; empty if it can."""
    if barcode is None:
        return "the name is no barcode of a TCGA slide"
    if barcode["sample"] >= FIRST_NORMAL:
        return f"normal tissue or control (sample type {barcode['sample']})"
    if barcode["sample"] != PRIMARY_TUMOR:
        return f"no primary tumour (sample type {barcode['sample']})"
    if barcode["kind"] != "DX":
        return "frozen section, not a diagnostic slide"
    return next(_sheet_faults(path, barcode, rows, classes), "")


def _sheet_faults(
    path: Path, barcode: re.Match[str], rows: Sequence[Mapping[str, str]], classes: Mapping[str, str]
) -> Iterator[str]:
    """Yield why the sample sheet speaks against a slide."""
    if not rows:
        yield "not in the sample sheet"
        return
    if len({row["Project ID"] for row in rows}) > 1:
        yield "two diagnoses: rows of the sample sheet name different projects"
    if {case.strip() for row in rows for case in row["Case ID"].split(",")} != {barcode["patient"]}:
        yield "barcode and Case ID of the sample sheet disagree"
    if UUID.fullmatch(path.parent.name) and path.parent.name.lower() not in {row["File ID"].lower() for row in rows}:
        yield "folder and File ID of the sample sheet disagree"
    if any(row.get(column, "").lower() in NORMAL_WORDS for row in rows for column in NORMAL_COLUMNS):
        yield "barcode of a tumour, but normal tissue in the sample sheet"
    if rows[0]["Project ID"] not in classes:
        yield f"project {rows[0]['Project ID']} is not in this question"


def _label(
    project: str, patient: str, classes: Mapping[str, str], diagnoses: Mapping[str, set[str]]
) -> tuple[str, str]:
    """Return the class of a slide and an empty reason, or the reason why it has none."""
    if classes[project]:
        return classes[project], ""
    stated = diagnoses.get(patient, set())
    if not stated:
        return "", "no diagnosis in the clinical table"
    if len(stated) > 1:
        return "", "two diagnoses in the clinical table"
    diagnosis = next(iter(stated))
    label = BRCA_CLASSES.get(diagnosis.lower(), "")
    return label, "" if label else f"diagnosis {shorten(diagnosis)} is neither IDC nor ILC"


def _absent(files: Sequence[Path], sheet: _Sheet) -> Iterator[Omission]:
    """Yield the slides of the sample sheet that are not here, and half-downloaded ones."""
    names = {path.name for path in files}
    for name in sheet.rows:
        if f"{name}.partial" in names:
            yield Omission(name, "download not finished (.partial)")
        elif name not in names:
            yield Omission(name, "in the sample sheet, but not downloaded")
