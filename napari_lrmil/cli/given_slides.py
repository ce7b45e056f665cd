"""Slides that a command was called for: in files, folders and cohort tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from napari_lrmil.cli.cohort_options import ExecutionOptions
from napari_lrmil.cli.console import print_notice
from napari_lrmil.core.text_escapes import printable

if TYPE_CHECKING:
    from napari_lrmil.core.cohort import SlideJob


@dataclass(frozen=True)
class GivenSlide:
    """A slide that a command was called for.

    Attributes
    ----------
    path
        Slide file, or folder of a DICOM slide.
    mpp
        µm per level-0 pixel, if a cohort table states it.
    path_in_cohort
        Path without the folders above the cohort, see `path_in_cohort`.
    """

    path: Path
    mpp: float | None
    path_in_cohort: str


def expand_slides(paths: Sequence[Path]) -> tuple[list[GivenSlide], list[str]]:
    """Return the slides in files, folders and cohort tables, in the given order, and notices.

    A DICOM series is one slide. The notices say what is left out, or read in another way than a table has it. They are
    printed here.

    Raises
    ------
    typer.BadParameter
        If nothing of what was given is a slide.
    """
    from napari_lrmil.core.slides.slide_files import SLIDE_ENDINGS, SlideSearch, is_table, path_in_cohort

    search, slides, notices = SlideSearch(), list[GivenSlide](), list[str]()
    for path in paths:
        resolutions, root = dict[Path, float | None](), path
        if path.is_dir():
            search.add_folder(path)
        elif is_table(path):
            resolutions, root = _read_table(path, notices), path.parent
            for slide in resolutions:
                search.add_listed(slide)
        else:
            search.add_file(path, is_only=len(paths) == 1)
        new = search.slides[len(slides) :]
        slides += [GivenSlide(slide, resolutions.get(slide), path_in_cohort(slide, root)) for slide in new]
    places = ", ".join(printable(path) for path in paths)
    if not slides:
        expected = f"expected files such as {', '.join(SLIDE_ENDINGS[:5])}"
        raise typer.BadParameter("; ".join(filter(None, [f"{places} holds no slide", expected, search.notice])))
    if search.notice:
        print_notice(places if len(paths) == 1 else "", search.notice)
        notices.append(search.notice)
    return slides, notices


def _read_table(table: Path, notices: list[str]) -> dict[Path, float | None]:
    """Return the slides of a cohort table with the resolutions that it states; print its notices and add them."""
    from lrmil_training.data.cohort import read_slides

    slides = read_slides(table)
    for notice in slides.notices:
        print_notice(printable(table.name), notice)
        notices.append(f"{table.name}: {notice}")
    return {slide.path: slide.mpp for slide in slides.slides}


def slide_jobs(given: Sequence[GivenSlide], mpp: float | None, execution: ExecutionOptions) -> list[SlideJob]:
    """Return the slides as jobs. ``--mpp`` overrides the column of a cohort table."""
    from napari_lrmil.core.cohort import SlideJob

    return [SlideJob(execution.resolve_path(slide.path), mpp or slide.mpp, slide.path_in_cohort) for slide in given]
