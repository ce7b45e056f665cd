"""Command ``doctor``: examine the installation."""

from __future__ import annotations

import csv
import sys
from typing import Annotated

import typer
from rich.text import Text

from napari_lrmil.cli.console import FAILED, out
from napari_lrmil.core.text_escapes import printable

COLOURS = {"ok": "green", "note": "yellow", "failed": "red"}


def doctor(
    licences: Annotated[
        bool,
        typer.Option("--licences", help="print the licences of all dependencies (CSV); check nothing"),
    ] = False,
) -> None:
    """Examine this installation: versions, device, folders, extras, model hub, and a self-test on synthetic slides."""
    if licences:
        _print_licences()
        return
    from napari_lrmil.core.doctor import run_checks

    failed = 0
    for check in run_checks():
        failed += check.status == "failed"
        remedy = f"; {check.remedy}" if check.remedy else ""
        text = printable(f"{check.name}: {check.text}{remedy}")
        out.print(
            Text.assemble((f"{check.status:6}", COLOURS[check.status]), " ", text), highlight=False, soft_wrap=True
        )
    if failed:
        out.print(f"{failed} check{'s' if failed > 1 else ''} failed; see above what to do", highlight=False)
        raise typer.Exit(FAILED)
    out.print("everything that was checked works", highlight=False)


def _print_licences() -> None:
    """Print name, version and licence of every dependency as CSV."""
    from napari_lrmil.core.doctor.licences import dependency_licences

    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(("name", "version", "licence", "needed by", "copyleft"))
    for row in dependency_licences():
        cells = (row.name, row.version, row.licence, row.needed_by)
        table.writerow((*map(printable, cells), "yes" if row.is_copyleft else ""))
