"""Cohort of CAMELYON16: labels from folders, names and ``reference.csv``, outlines from ASAP's XML.

Slides are recognised by their names, so both layouts in use are read: ``training/normal``, ``training/tumor`` and
``testing/images``, and all slides in one folder. Each slide is of another patient (399 slides of 399 patients).
"""

from __future__ import annotations

import csv
import re
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from lrmil_training.data.published.table import (
    LEVEL0_ORIGIN,
    Omission,
    PublishedCohort,
    PublishedSlide,
    class_notice,
    files_of,
    with_splits,
    without_copies,
)
from napari_lrmil.core.errors import CohortError, RegionError
from napari_lrmil.core.formatting import shorten
from napari_lrmil.core.patching.annotation_text import MAX_BYTES
from napari_lrmil.core.patching.regions import Region, read_regions

NORMAL, TUMOR = "normal", "tumor"
SLIDE_NAME = re.compile(r"(normal|tumor|test)_\d{3}", re.IGNORECASE)
TEST_NAME = re.compile(r"test_\d{3}", re.IGNORECASE)
REFERENCE = "reference.csv"
# Slides whose lesions are not all outlined: 20 of the training slides, as studies that use the outlines state.
PARTLY_OUTLINED = frozenset(
    [
        *(f"tumor_{n:03d}" for n in (10, 15, 18, 20, 25, 29, 33, 34, 44, 46, 51, 54, 55, 56, 67, 79, 85, 92, 95, 110)),
        "test_114",
    ]
)
VAL_SHARE = 0.2  # of the training slides of each class; the data set has no validation side
LAYOUT = "expected training/normal/normal_001.tif, training/tumor/tumor_001.tif, testing/images/test_001.tif and so on"


@dataclass
class _Download:
    """Files of a download by kind, and what was left out of it."""

    slides: dict[str, Path] = field(default_factory=dict)
    annotations: dict[str, Path] = field(default_factory=dict)
    references: list[Path] = field(default_factory=list)
    archives: list[Path] = field(default_factory=list)
    omissions: list[Omission] = field(default_factory=list)


def read_camelyon16(
    folder: Path, *, seed: int = 0, with_outlines: bool = True, partial: Collection[str] = ()
) -> PublishedCohort:
    """Return the cohort in a folder of CAMELYON16. Training slides are split into train and val if test slides exist.

    Parameters
    ----------
    folder
        Folder of the download; parts of it may be missing.
    seed
        Seed of the split of training slides, which is stratified by label.
    with_outlines
        Whether lesion outlines are read.
    partial
        Names of slides, beside `PARTLY_OUTLINED`, whose lesions are not all outlined. Their outlines are not used.

    Raises
    ------
    CohortError
        If there is no slide, or ``reference.csv`` is missing or of another release.
    """
    download = _sort_files(folder)
    if not download.slides:
        raise CohortError(folder, f"no slide of CAMELYON16; {LAYOUT}")
    labels = _labels(folder, download)
    slides = [
        PublishedSlide(path, name, labels[name], "test" if TEST_NAME.fullmatch(name) else "")
        for name, path in download.slides.items()
        if name in labels
    ]
    outlines: dict[Path, tuple[Region, ...]] = {}
    if with_outlines:
        with tempfile.TemporaryDirectory() as unpacked:
            _unpack(download, Path(unpacked))
            slides, outlines = _outlines(slides, download, PARTLY_OUTLINED | {name.lower() for name in partial})
    slides, copies = without_copies(slides)
    if not slides:
        raise CohortError(folder, "no slide can be used; see the labels and annotations of the download")
    used = {slide.path for slide in slides}
    return PublishedCohort(
        with_splits(slides, _assign_splits(slides, seed)),
        (*download.omissions, *copies),
        {path: regions for path, regions in outlines.items() if path in used},
        class_notice(slides),
    )


def _sort_files(folder: Path) -> _Download:
    """Return the files of a folder by kind. The second file of a name is left out."""
    download = _Download()
    for path in files_of(folder):
        name, ending = path.stem.lower(), path.suffix.lower()
        if path.name.lower() == REFERENCE:
            download.references.append(path)
        elif ending == ".zip" and "annotation" in name:
            download.archives.append(path)
        elif ending == ".xml":
            _add(download, download.annotations, name, path)
        elif ending in (".tif", ".tiff"):
            if SLIDE_NAME.fullmatch(name):
                _add(download, download.slides, name, path)
            else:
                download.omissions.append(Omission(path.name, "not named like a slide of CAMELYON16 (a mask?)"))
    return download


def _add(download: _Download, files: dict[str, Path], name: str, path: Path) -> None:
    if name in files:
        download.omissions.append(Omission(str(path), "second file of that name"))
    else:
        files[name] = path


# ---------------------------------------------------------------- labels


def _labels(folder: Path, download: _Download) -> dict[str, str]:
    """Return name -> label of the slides whose label is certain; the others are added to the omissions."""
    test = [name for name in download.slides if TEST_NAME.fullmatch(name)]
    labels = _test_labels(folder, download, test) if test else {}
    for name, path in download.slides.items():
        if name in test:
            if name not in labels:
                continue
        else:
            labels[name] = name.partition("_")[0]
        place = path.parent.name.lower()
        if place in (NORMAL, TUMOR) and place != labels[name]:
            del labels[name]
            download.omissions.append(Omission(path.name, "two diagnoses: folder and label disagree"))
    return labels


def _test_labels(folder: Path, download: _Download, test: Sequence[str]) -> dict[str, str]:
    """Return name -> label from ``reference.csv``."""
    if len(download.references) != 1:
        count = len(download.references) or "no"
        raise CohortError(
            folder, f"{len(test)} test slides and {count} {REFERENCE}; expected one with their labels in testing/"
        )
    stated = _read_reference(download.references[0])
    if not set(test) & set(stated):
        raise CohortError(
            download.references[0],
            f"names none of the {len(test)} test slides here; it is the label file of another release",
        )
    for name in test:
        if len(stated.get(name, ())) != 1:
            reason = f"two diagnoses in {REFERENCE}" if name in stated else f"test slide without a row in {REFERENCE}"
            download.omissions.append(Omission(name, reason))
    absent = [name for name in stated if name not in download.slides]
    download.omissions += [Omission(name, f"in {REFERENCE}, but no such file here") for name in absent]
    return {name: next(iter(stated[name])) for name in test if len(stated.get(name, ())) == 1}


def _read_reference(path: Path) -> dict[str, set[str]]:
    """Return name -> labels of the rows ``test_001,Tumor,...``, with or without a head and the ending ``.tif``."""
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, ValueError, csv.Error) as error:
        raise CohortError(path, f"cannot be read ({error}); expected rows such as test_001,Tumor") from error
    labels: dict[str, set[str]] = {}
    for line, row in enumerate(rows, start=1):
        cells = [cell.strip().lower() for cell in row]
        if not any(cells):
            continue
        name, label = cells[0].removesuffix(".tif"), cells[1] if len(cells) > 1 else ""
        if TEST_NAME.fullmatch(name) and label in (NORMAL, TUMOR):
            labels.setdefault(name, set()).add(label)
        elif line > 1 or TEST_NAME.fullmatch(name):  # the first line may be a head
            raise CohortError(
                path,
                f"line {line} is '{shorten(','.join(row))}'; expected test_001,Tumor or test_001,Normal; this is the "
                "label file of another release",
            )
    return labels


def _assign_splits(slides: Sequence[PublishedSlide], seed: int) -> dict[Path, str]:
    """Return path -> train or val of training slides; nothing without test slides, so that all three are assigned."""
    if not any(slide.split for slide in slides):
        return {}
    rng, splits = np.random.default_rng(seed), {}
    for label in (NORMAL, TUMOR):
        paths = sorted((s.path for s in slides if not s.split and s.label == label), key=lambda path: path.name)
        n_val = round(VAL_SHARE * len(paths))
        for rank, i in enumerate(rng.permutation(len(paths))):
            splits[paths[i]] = "val" if rank < n_val else "train"
    return splits


# ---------------------------------------------------------------- outlines


def _unpack(download: _Download, folder: Path) -> None:
    """Unpack the annotations of archives into a folder; a file outside the archives comes first."""
    for number, archive in enumerate(download.archives):
        place = folder / str(number)
        place.mkdir()
        try:
            for name, content in _xml_members(archive):
                if name not in download.annotations:
                    download.annotations[name] = place / f"{name}.xml"
                    download.annotations[name].write_bytes(content)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
            raise CohortError(archive, f"cannot be unpacked ({error}); download it again") from error


def _xml_members(archive: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as members:
        for info in members.infolist():
            path = PurePosixPath(info.filename)
            if path.suffix.lower() == ".xml" and not path.name.startswith("."):
                if info.file_size > MAX_BYTES:
                    raise CohortError(archive, f"{path.name} is too large for outlines; download the archive again")
                yield path.stem.lower(), members.read(info)


def _outlines(
    slides: Sequence[PublishedSlide], download: _Download, partial: Collection[str]
) -> tuple[list[PublishedSlide], dict[Path, tuple[Region, ...]]]:
    """Return the slides that can be used, and path -> lesions of those whose outlines are known to be complete."""
    usable: list[PublishedSlide] = []
    outlines: dict[Path, tuple[Region, ...]] = {}
    for slide in slides:
        file = download.annotations.get(slide.patient)
        if slide.label == NORMAL and file is not None:
            download.omissions.append(Omission(slide.path.name, "two diagnoses: labelled normal, lesions outlined"))
            continue
        usable.append(slide)
        if slide.label == NORMAL:
            outlines[slide.path] = ()
            continue
        regions, reason = (None, "no annotation file") if file is None else _read_outlines(file)
        if slide.patient in partial:
            regions, reason = None, "not all of its lesions are outlined"
        if regions is None:
            download.omissions.append(Omission(slide.path.name, f"slide kept without outlines: {reason}"))
        else:
            outlines[slide.path] = regions
    absent = sorted(set(download.annotations) - set(download.slides))
    download.omissions += [Omission(f"{name}.xml", "annotation file without its slide") for name in absent]
    return usable, outlines


def _read_outlines(file: Path) -> tuple[tuple[Region, ...] | None, str]:
    """Return the lesions of a file, or None and the reason. A file of which a part is unusable is not used."""
    try:
        content = read_regions(file, LEVEL0_ORIGIN)
    except RegionError:
        return None, "the annotation file cannot be read"
    if content.skipped:
        return None, "a part of the annotation file has no area"
    return content.regions, ""
