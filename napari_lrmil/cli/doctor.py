"""Command ``doctor``: examine the installation."""

from __future__ import annotations

import typer
from rich.text import Text

from napari_lrmil.cli.console import FAILED, out
from napari_lrmil.core.text_escapes import printable

COLOURS = {"ok": "green", "note": "yellow", "failed": "red"}


def doctor() -> None:
    """Examine this installation: versions, device, folders, extras, model hub, and a self-test on synthetic slides."""
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
