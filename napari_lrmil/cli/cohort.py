"""Command ``cohort``: the cohort table of a public data set from the folder in which it was downloaded."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from napari_lrmil.cli.console import print_notice, print_result
from napari_lrmil.core.formatting import format_count

if TYPE_CHECKING:
    from lrmil_training.data.published.table import PublishedCohort

CAMELYON16, TCGA = "camelyon16", "tcga"


def cohort(
    source: Annotated[str, typer.Argument(metavar="camelyon16|tcga", help="the data set")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder into which it was downloaded")],
    table: Annotated[
        Path | None, typer.Option("--out", help="the table; if not given: cohort.csv in the folder")
    ] = None,
    outlines: Annotated[
        bool, typer.Option("--outlines/--no-outlines", help="camelyon16: write the lesion outlines beside the slides")
    ] = True,
    partial: Annotated[
        list[str] | None,
        typer.Option(help="camelyon16: a further slide whose lesions are not all outlined, such as tumor_001"),
    ] = None,
    seed: Annotated[int, typer.Option(help="camelyon16: seed of the split into train and val")] = 0,
    task: Annotated[
        str | None, typer.Option(help="tcga: nsclc, rcc or brca; if not given: that of the sample sheet's projects")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="tcga: GDC's sample sheet; if not given: the one in DIR")] = None,
    clinical: Annotated[
        Path | None, typer.Option(help="tcga, brca: GDC's clinical table; if not given: the one in DIR")
    ] = None,
) -> None:
    """Make the cohort table of CAMELYON16 or TCGA from the published folders, and list what was left out."""
    from lrmil_training.data.published.camelyon16 import read_camelyon16
    from lrmil_training.data.published.table import left_out_file, write_published
    from lrmil_training.data.published.tcga import TASKS, read_tcga

    if source == CAMELYON16:
        _refuse_options(source, task=task, sheet=sheet, clinical=clinical)
        content = read_camelyon16(folder, seed=seed, with_outlines=outlines, partial=partial or ())
    elif source == TCGA:
        _refuse_options(source, partial=partial, seed=seed or None, no_outlines=not outlines or None)
        if task not in (None, *TASKS):
            raise typer.BadParameter(f"--task {task}: expected {', '.join(TASKS)}")
        content = read_tcga(folder, task=task, sheet=sheet, clinical=clinical)
    else:
        raise typer.BadParameter(f"{source}: expected {CAMELYON16} or {TCGA}")
    path = table or folder / "cohort.csv"
    write_published(content, path)
    _print_omissions(content)
    _print_counts(content, path)
    print_result(f"left out: {len(content.omissions)} -> {left_out_file(path)}")


def _refuse_options(source: str, **options: object) -> None:
    for name, value in options.items():
        if value:
            raise typer.BadParameter(f"--{name.replace('_', '-')} does not belong to {source}")


def _print_omissions(content: PublishedCohort) -> None:
    for reason, names in content.reasons().items():
        print_notice("", f"{len(names)}: {reason}, first {names[0]}")
    for text in content.notices:
        print_notice("", text)


def _print_counts(content: PublishedCohort, path: Path) -> None:
    from lrmil_training.data.patient_groups import count_patients

    slides = content.slides
    groups = [Counter(s.label for s in slides), Counter(s.split for s in slides if s.split)]
    counts = "; ".join(
        ", ".join(f"{name} {count}" for name, count in sorted(group.items())) for group in groups if group
    )
    patients = count_patients(slide.patient for slide in slides)
    print_result(f"{format_count(len(slides), 'slide')} of {format_count(patients, 'patient')} ({counts}) -> {path}")
    lesions = sum(bool(regions) for regions in content.outlines.values())
    if content.outlines:
        print_result(f"outlines beside {format_count(len(content.outlines), 'slide')}, {lesions} of them with lesions")
