"""The command ``phantom``: synthetic slides with known lesions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from napari_lrmil.cli.console import print_result, show_progress
from napari_lrmil.core.atomic_files import require_writable
from napari_lrmil.core.formatting import format_count

DEFAULT_PHANTOMS = 20  # slides


def phantom(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="folder for the cohort")],
    slides: Annotated[
        int | None, typer.Option(min=1, show_default="20", help="number of slides, each of a different patient")
    ] = None,
    size: Annotated[str, typer.Option(help="width x height in px at 20x")] = "4096x3072",
    seed: Annotated[int, typer.Option(help="seed of the random numbers; it determines every pixel")] = 0,
    split: Annotated[
        str | None, typer.Option(help="train, val or test for all slides; if not given: 60/20/20 by patient")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="number of processes")] = 1,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="40x, no-mpp, fold, pen, pen-blue, pen-black, bounds, svs, generic, ome; several combine"),
    ] = None,
    tissue_share: Annotated[
        float | None, typer.Option(help="share of the slide that is tissue, in pieces; if not given: one piece, or 0.5")
    ] = None,
    patients: Annotated[
        int | None,
        typer.Option(min=1, help="in place of --slides: patients with stain, morphology and scanner of their own"),
    ] = None,
    slides_per_patient: Annotated[
        str | None, typer.Option(show_default="1..2", help="with --patients: slides of each, a number or a range")
    ] = None,
) -> None:
    """Make synthetic slides with known lesions: pyramids, cohort.csv, lesion outlines."""
    from napari_lrmil.core.phantom import PhantomLook, make_cohort

    if split not in (None, "train", "val", "test"):
        raise typer.BadParameter(f"--split {split}: expected train, val or test")
    counts = _phantom_counts(slides, patients, slides_per_patient)
    require_writable(folder)
    events = make_cohort(
        folder,
        size=_parse_size(size),
        seed=seed,
        split=split,
        workers=workers,
        look=PhantomLook(tissue_share=tissue_share),
        variants=variant or (),
        **counts,
    )
    table = show_progress(events, "phantom slides")
    written = (
        format_count(counts["slides"], "slide")
        if patients is None
        else f"slides of {format_count(patients, 'patient')}"
    )
    print_result(f"{written} -> {table}")


def _phantom_counts(slides: int | None, patients: int | None, slides_per_patient: str | None) -> dict[str, Any]:
    """Return the numbers of slides and patients as `make_cohort` takes them."""
    from napari_lrmil.core.phantom.patients import SLIDES_PER_PATIENT, parse_slides_per_patient

    if patients is None:
        if slides_per_patient is not None:
            raise typer.BadParameter("--slides-per-patient is for phantoms with --patients")
        return {"slides": DEFAULT_PHANTOMS if slides is None else slides}
    if slides is not None:
        raise typer.BadParameter("--slides and --patients exclude each other; use --slides-per-patient")
    bounds = SLIDES_PER_PATIENT if slides_per_patient is None else parse_slides_per_patient(slides_per_patient)
    return {"slides": None, "patients": patients, "slides_per_patient": bounds}


def _parse_size(text: str) -> tuple[int, int]:
    """Return width and height of a text such as ``4096x3072``."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise typer.BadParameter(f"--size {text}: expected width x height in pixels, such as 4096x3072")
    return int(width), int(height)
