"""Cohort table of a published data set: its rows, what was left out and why, and the lesion outlines beside slides."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from napari_lrmil.core.csv_files import read_csv, write_csv
from napari_lrmil.core.errors import CohortError
from napari_lrmil.core.geometry import Bounds
from napari_lrmil.core.inference.teacher_comparison import lesion_file
from napari_lrmil.core.patching.regions import Region, read_regions, write_regions

LEVEL0_ORIGIN = Bounds(0, 0, 0, 0)  # files of outlines beside slides do not count from the corner of the scanned area
SAMPLE_BYTES = 2**16  # at the begin, middle and end of a file; two scans differ in every tile
OPTIONAL = ("split", "site")


@dataclass(frozen=True)
class PublishedSlide:
    """A slide of a published data set; an empty split or site is not stated."""

    path: Path
    patient: str
    label: str
    split: str = ""
    site: str = ""


@dataclass(frozen=True)
class Omission:
    """A file or a row that was not used. `reason` reads well after a count and a colon."""

    name: str
    reason: str


@dataclass(frozen=True)
class PublishedCohort:
    """Content of a cohort table before it is written.

    Attributes
    ----------
    slides
        The slides, in the order of the table.
    omissions
        What was left out.
    outlines
        Slide -> its lesions in level-0 pixels; no lesion states that the slide has none.
    notices
        Sentences on what else a user should know.
    """

    slides: tuple[PublishedSlide, ...]
    omissions: tuple[Omission, ...] = ()
    outlines: Mapping[Path, tuple[Region, ...]] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def reasons(self) -> dict[str, list[str]]:
        """Return reason -> names of what was left out for it, the most frequent first."""
        counts = Counter(omission.reason for omission in self.omissions)
        return {reason: [o.name for o in self.omissions if o.reason == reason] for reason, _ in counts.most_common()}


def files_of(folder: Path) -> list[Path]:
    """Return all files below a folder, sorted, without hidden ones.

    Raises
    ------
    CohortError
        If there is no such folder.
    """
    if not folder.is_dir():
        raise CohortError(folder, "no such folder; expected the folder into which the data set was downloaded")
    files: list[Path] = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
    return files


def left_out_file(table: Path) -> Path:
    """Return the path of the list of what was left out of a table."""
    return table.with_name(f"{table.stem}.left_out.csv")


def write_published(cohort: PublishedCohort, table: Path) -> None:
    """Write the table, the list of what was left out, and the outlines beside the slides.

    Nothing is written if a file with another content is there already: it may hold a user's work.

    Raises
    ------
    CohortError
        If a table or outlines with another content exist, or a file cannot be written.
    """
    rows = _table_rows(cohort, table.parent)
    if table.exists() and not _has_rows(table, rows):
        raise CohortError(table, "the file exists with other rows; move it away, or choose another --out")
    outlines = list(_missing_outlines(cohort.outlines))
    try:
        for file, regions in outlines:
            write_regions(file, regions, LEVEL0_ORIGIN)
        write_csv(left_out_file(table), [("name", "reason"), *((o.name, o.reason) for o in cohort.omissions)])
        write_csv(table, rows)  # last: a table is there only if all that belongs to it is
    except OSError as error:
        raise CohortError(
            table,
            f"a file cannot be written ({error}); make the folder writable, or use --no-outlines and another --out",
        ) from error


def _has_rows(table: Path, rows: Sequence[Sequence[str]]) -> bool:
    try:
        return read_csv(table) == [list(row) for row in rows]
    except (OSError, ValueError):
        return False


def _table_rows(cohort: PublishedCohort, folder: Path) -> list[tuple[str, ...]]:
    optional = [column for column in OPTIONAL if any(getattr(slide, column) for slide in cohort.slides)]
    rows = [("slide", "patient", "label", *optional)]
    for slide in cohort.slides:
        cells = (getattr(slide, column) for column in optional)
        rows.append((_relative(slide.path, folder), slide.patient, slide.label, *cells))
    return rows


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive of Windows
        return str(path.resolve())


def _missing_outlines(outlines: Mapping[Path, tuple[Region, ...]]) -> Iterator[tuple[Path, tuple[Region, ...]]]:
    """Yield the files of outlines that do not exist yet; raise `CohortError` if one exists with other outlines."""
    for slide, regions in outlines.items():
        file = lesion_file(slide)
        if not file.exists():
            yield file, regions
            continue
        stored = read_regions(file, LEVEL0_ORIGIN, may_be_empty=True).regions
        if [r.geometry.wkb for r in stored] != [r.geometry.wkb for r in regions]:
            raise CohortError(file, "other lesion outlines are there already; move them away, or use --no-outlines")


# ---------------------------------------------------------------- checks that all data sets share


def without_copies(slides: Sequence[PublishedSlide]) -> tuple[list[PublishedSlide], list[Omission]]:
    """Return the slides without copies of one file, and the omissions.

    Of copies with one label the first stays. Of copies with different labels none stays, because one of them is wrong.
    """
    groups: dict[object, list[PublishedSlide]] = {}
    for slide in slides:
        groups.setdefault(slide.path.stat().st_size, []).append(slide)
    same: dict[object, list[PublishedSlide]] = {}
    for size, group in groups.items():
        for slide in group:
            same.setdefault((size, _sampled_hash(slide.path) if len(group) > 1 else ""), []).append(slide)
    dropped: dict[Path, str] = {}
    for copies in same.values():
        if len({slide.label for slide in copies}) > 1:
            dropped |= {slide.path: "copies of one file with different labels" for slide in copies}
        else:
            dropped |= {slide.path: "copy of another slide's file" for slide in copies[1:]}
    distinct = [slide for slide in slides if slide.path not in dropped]
    return distinct, [Omission(slide.path.name, dropped[slide.path]) for slide in slides if slide.path in dropped]


def _sampled_hash(path: Path) -> str:
    """Return a hash of three parts of a file. Slides are gigabytes, and two of one size are rare."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        for start in (0, size // 2, max(0, size - SAMPLE_BYTES)):
            file.seek(start)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def class_notice(slides: Iterable[PublishedSlide]) -> tuple[str, ...]:
    """Return a notice if the slides have one class only."""
    labels = {slide.label for slide in slides}
    return () if len(labels) > 1 else (f"all slides are {next(iter(labels))}; training needs a second class",)


def with_splits(slides: Sequence[PublishedSlide], splits: Mapping[Path, str]) -> tuple[PublishedSlide, ...]:
    """Return the slides with the given splits."""
    return tuple(replace(slide, split=splits.get(slide.path, slide.split)) for slide in slides)
