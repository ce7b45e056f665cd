"""Cohorts of phantom slides: assigns labels and splits, writes slides in parallel and one cohort table."""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from napari_lrmil.core.atomic_files import write_text
from napari_lrmil.core.errors import CohortError
from napari_lrmil.core.events import Event, Finished, Progress
from napari_lrmil.core.phantom.look import CLASSES, DEFAULT_LOOK, PhantomLook, PhantomSlide
from napari_lrmil.core.phantom.slide import write_slide
from napari_lrmil.core.phantom.variants import combine_variants

COHORT_COLUMNS = ("slide", "patient", "label", "split")


def make_cohort(
    out: Path,
    slides: int,
    size: tuple[int, int],
    seed: int,
    *,
    split: str | None = None,
    workers: int = 1,
    look: PhantomLook = DEFAULT_LOOK,
    variants: Sequence[str] = (),
) -> Iterator[Event]:
    """Write a cohort with half lesion slides, and yield progress; several calls can fill one folder.

    Parameters
    ----------
    out
        Folder of the slides and of ``cohort.csv``. Rows of earlier calls stay; rows of the same slides are replaced.
    slides, size
        Number of slides, each of a different patient; width and height of each, in px of 0.5 µm.
    seed
        Random seed. Together with `split` it determines every pixel, independent of `workers`.
    split
        Split of all slides; by default they are split 60/20/20 within each class.
    workers
        Number of painting processes.
    look, variants
        Appearance of the tissue, and names of `VARIANTS` that are all applied to every slide.

    Yields
    ------
    Event
        Progress after each slide, then Finished with the path of ``cohort.csv``.
    """
    plan, splits = _plan_cohort(slides, size, seed, split)
    combine_variants(variants)  # raises an error for a wrong name before anything is painted
    files = []
    for done, path in enumerate(_write_all(Path(out), plan, look, variants, workers), start=1):
        files.append(path.name)
        yield Progress("phantom", done, slides, unit="slides")
    yield Finished(_merge_table(Path(out) / "cohort.csv", _table_rows(files, plan, splits)))


def _table_rows(files: Sequence[str], plan: Sequence[PhantomSlide], splits: Sequence[str]) -> list[tuple[str, ...]]:
    return [(f, f"P-{s.name}", s.label, split) for f, s, split in zip(files, plan, splits, strict=True)]


def _plan_cohort(
    count: int, size: tuple[int, int], seed: int, split: str | None
) -> tuple[list[PhantomSlide], list[str]]:
    """Return the slides and their splits; labels are shuffled, so names do not reveal them."""
    call = zlib.crc32((split or "").encode())  # other splits of the same seed hold other slides
    rng = np.random.default_rng([seed, call])
    labels = [CLASSES[int(i)] for i in rng.permutation(np.arange(count) % 2)]
    seeds = rng.integers(2**62, size=count)
    plan = [
        PhantomSlide(f"{split or 'slide'}-{seed}-{i:03d}", label, int(seeds[i]), size) for i, label in enumerate(labels)
    ]
    return plan, [split] * count if split else _stratify(labels)


def _stratify(labels: Sequence[str]) -> list[str]:
    """Return splits assigned in turn within each class, so that even a few slides cover all three splits."""
    turn, seen = ("train", "val", "test", "train", "train"), dict.fromkeys(CLASSES, -1)
    splits = []
    for label in labels:
        seen[label] += 1
        splits.append(turn[seen[label] % len(turn)])
    return splits


def _write_all(
    out: Path, plan: Sequence[PhantomSlide], look: PhantomLook, variants: Sequence[str], workers: int
) -> Iterator[Path]:
    if workers <= 1:
        yield from (write_slide(out, slide, look, variants=variants) for slide in plan)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(write_slide, out, slide, look, variants=variants) for slide in plan]
        try:
            yield from (job.result() for job in jobs)
        finally:
            for job in jobs:  # a caller that stops early must not wait for the remaining slides
                job.cancel()


def _merge_table(path: Path, rows: Sequence[tuple[str, ...]]) -> Path:
    """Add rows to the cohort table, replace older rows of the same slides, and return its path."""
    table = {row[0]: row for row in [*_read_table(path), *rows]}
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COHORT_COLUMNS, *(table[name] for name in sorted(table))])
    write_text(path, text.getvalue())
    return path


def _read_table(path: Path) -> list[tuple[str, ...]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as handle:
        table = csv.DictReader(handle)
        if tuple(table.fieldnames or ()) != COHORT_COLUMNS:
            raise CohortError(path, f"is no table of phantoms (columns {table.fieldnames}); choose another folder")
        return [tuple(row[column] for column in COHORT_COLUMNS) for row in table]
