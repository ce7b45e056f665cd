"""Search for the slides of stored results in a folder that the user names, after the slides have moved."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.slides.slide_files import has_slide_ending
from napari_lrmil.core.slides.slide_names import slide_name

if TYPE_CHECKING:
    from napari_lrmil.core.results.reader import StoredResult


def find_moved_slides(results: Iterable[StoredResult], folder: Path) -> dict[Path, Path]:
    """Return the slides of stored results below `folder`; a slide that is not there has no entry.

    Only names are compared. The slide's fingerprint is compared before results are shown on it.

    Parameters
    ----------
    results
        Rows of a cohort's table.
    folder
        Folder with the slides. Subfolders are searched too, because the GDC stores one slide per folder.

    Returns
    -------
    dict
        Folder of the results -> slide; of several with the same name, the first in the order of the paths.

    Raises
    ------
    SlideError
        If the folder cannot be read.
    """
    if not os.access(folder, os.R_OK | os.X_OK):
        raise SlideError(folder, "the folder cannot be read; check its permissions")
    by_file_name: dict[str, Path] = {}
    by_slide_name: dict[str, Path] = {}
    for path, is_folder in _walk(folder):
        by_file_name.setdefault(path.name, path)
        if is_folder or has_slide_ending(path):
            by_slide_name.setdefault(slide_name(path), path)
    slides = {}
    for result in results:
        slide = by_file_name.get(result.path.name) if result.path is not None else by_slide_name.get(result.name)
        if slide is not None:
            slides[result.folder] = slide
    return slides


def _walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the folder itself, its files and its subfolders, each with whether it is a folder that may be a slide."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        if "prediction.json" not in files:  # the results of a DICOM folder lie in a folder of its name
            yield Path(place), True
            yield from ((Path(place, name), False) for name in sorted(files))
