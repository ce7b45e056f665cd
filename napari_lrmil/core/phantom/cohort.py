"""Cohorts of phantom slides: assigns patients, labels and splits, writes slides in parallel and one cohort table."""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from napari_lrmil.core.atomic_files import write_text
from napari_lrmil.core.errors import CohortError, ConfigError
from napari_lrmil.core.events import Event, Finished, Progress
from napari_lrmil.core.phantom.look import CLASSES, DEFAULT_LOOK, PhantomLook, PhantomSlide
from napari_lrmil.core.phantom.patients import SLIDES_PER_PATIENT, draw_patient, require_slides_per_patient
from napari_lrmil.core.phantom.slide import write_slide
from napari_lrmil.core.phantom.variants import combine_variants

COHORT_COLUMNS = ("slide", "patient", "label", "split")
PATIENT_COLUMNS = (*COHORT_COLUMNS, "scanner")  # of cohorts whose patients differ
MAX_PATIENTS = 100_000


@dataclass(frozen=True)
class _PlannedSlide:
    """A slide to paint, and its row of the cohort table apart from the file name."""

    slide: PhantomSlide
    look: PhantomLook
    cells: tuple[str, ...]  # of `COHORT_COLUMNS` or `PATIENT_COLUMNS` after the first


def make_cohort(
    out: Path,
    slides: int | None,
    size: tuple[int, int],
    seed: int,
    *,
    split: str | None = None,
    workers: int = 1,
    look: PhantomLook = DEFAULT_LOOK,
    variants: Sequence[str] = (),
    patients: int | None = None,
    slides_per_patient: tuple[int, int] = SLIDES_PER_PATIENT,
) -> Iterator[Event]:
    """Write a cohort with half lesion slides, and yield progress; several calls can fill one folder.

    Parameters
    ----------
    out
        Folder of the slides and of ``cohort.csv``. Rows of earlier calls stay; rows of the same slides are replaced.
    slides, size
        Number of slides, each of a different patient, or None with `patients`; width and height of each, in px of
        0.5 µm.
    seed
        Random seed. Together with `split` it determines every pixel, independent of `workers`.
    split
        Split of all slides; by default they are split 60/20/20 by patient within each class.
    workers
        Number of painting processes.
    look, variants
        Appearance of the tissue, and names of `VARIANTS` that are all applied to every slide.
    patients
        Number of patients that differ in stain, morphology and scanner; half of them have lesions. The first patients
        of a larger cohort of the same seed and split are those of a smaller one. The table has a column ``scanner``.
    slides_per_patient
        Smallest and largest number of slides of a patient.

    Yields
    ------
    Event
        Progress after each slide, then Finished with the path of ``cohort.csv``.

    Raises
    ------
    ConfigError
        If both or neither of `slides` and `patients` are given, or a number is impossible.
    CohortError
        If the folder has a table that is none of phantoms, or of the other kind of phantoms.
    """
    columns = COHORT_COLUMNS if patients is None else PATIENT_COLUMNS
    plan = _plan(slides, patients, slides_per_patient, size, seed, split, look)
    combine_variants(variants)  # raises an error for a wrong name before anything is painted
    table = Path(out) / "cohort.csv"
    _read_table(table, columns)  # refuses a foreign table before anything is painted
    rows = []
    for done, path in enumerate(_write_all(Path(out), plan, variants, workers), start=1):
        rows.append((path.name, *plan[done - 1].cells))
        yield Progress("phantom", done, len(plan), unit="slides")
    yield Finished(_merge_table(table, columns, rows))


def _plan(
    slides: int | None,
    patients: int | None,
    slides_per_patient: tuple[int, int],
    size: tuple[int, int],
    seed: int,
    split: str | None,
    look: PhantomLook,
) -> list[_PlannedSlide]:
    if patients is None:
        if slides is None:
            raise ConfigError("a cohort of phantoms needs a number of slides or of patients")
        return _plan_slides(slides, size, seed, split, look)
    if slides is not None:
        raise ConfigError(
            f"{slides} slides and {patients} patients exclude each other; give patients, and slides per patient"
        )
    if not 1 <= patients <= MAX_PATIENTS:
        raise ConfigError(f"{patients} patients: expected 1 to {MAX_PATIENTS}")
    bounds = require_slides_per_patient(slides_per_patient)
    drawn = [draw_patient(i, size, seed, split, slides_per_patient=bounds, look=look) for i in range(patients)]
    splits = [split] * patients if split else _stratify([p.label for p in drawn])
    return [
        _PlannedSlide(slide, p.look, (p.name, p.label, own_split, p.scanner))
        for p, own_split in zip(drawn, splits, strict=True)
        for slide in p.slides
    ]


def _plan_slides(
    count: int, size: tuple[int, int], seed: int, split: str | None, look: PhantomLook
) -> list[_PlannedSlide]:
    """Return slides of one appearance with their splits; labels are shuffled, so names do not reveal them."""
    call = zlib.crc32((split or "").encode())  # other splits of the same seed hold other slides
    rng = np.random.default_rng([seed, call])
    labels = [CLASSES[int(i)] for i in rng.permutation(np.arange(count) % 2)]
    seeds = rng.integers(2**62, size=count)
    names = [f"{split or 'slide'}-{seed}-{i:03d}" for i in range(count)]
    splits = [split] * count if split else _stratify(labels)
    return [
        _PlannedSlide(PhantomSlide(name, label, int(own_seed), size), look, (f"P-{name}", label, own_split))
        for name, label, own_seed, own_split in zip(names, labels, seeds, splits, strict=True)
    ]


def _stratify(labels: Sequence[str]) -> list[str]:
    """Return splits assigned in turn within each class, so that even a few slides cover all three splits."""
    turn, seen = ("train", "val", "test", "train", "train"), dict.fromkeys(CLASSES, -1)
    splits = []
    for label in labels:
        seen[label] += 1
        splits.append(turn[seen[label] % len(turn)])
    return splits


def _write_all(out: Path, plan: Sequence[_PlannedSlide], variants: Sequence[str], workers: int) -> Iterator[Path]:
    if workers <= 1:
        yield from (write_slide(out, item.slide, item.look, variants=variants) for item in plan)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(write_slide, out, item.slide, item.look, variants=variants) for item in plan]
        try:
            yield from (job.result() for job in jobs)
        finally:
            for job in jobs:  # a caller that stops early must not wait for the remaining slides
                job.cancel()


def _merge_table(path: Path, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Path:
    """Add rows to the cohort table, replace older rows of the same slides, and return its path."""
    table = {row[0]: row for row in [*_read_table(path, columns), *rows]}
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *(table[name] for name in sorted(table))])
    write_text(path, text.getvalue())
    return path


def _read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return the rows of an earlier call; raise `CohortError` if the table has other columns."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as handle:
        table = csv.DictReader(handle)
        names = tuple(table.fieldnames or ())
        if names != columns and names in (COHORT_COLUMNS, PATIENT_COLUMNS):
            kinds = ("with", "without") if names == PATIENT_COLUMNS else ("without", "with")
            text = f"holds phantoms {kinds[0]} patients of their own look; the new ones are {kinds[1]}"
            raise CohortError(path, f"{text}; choose another folder")
        if names != columns:
            raise CohortError(path, f"is no table of phantoms (columns {table.fieldnames}); choose another folder")
        return [tuple(row[column] for column in columns) for row in table]
