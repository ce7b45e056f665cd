"""Command ``cache``: list and clear what is kept on the disk."""

from __future__ import annotations

from typing import Annotated

import typer

from napari_lrmil.cli.console import print_result
from napari_lrmil.core.formatting import format_size
from napari_lrmil.core.text_escapes import printable


def cache(
    clear: Annotated[
        list[str] | None,
        typer.Option("--clear", metavar="NAME", help="remove this entry; repeat; all: those of this program alone"),
    ] = None,
) -> None:
    """List what this program and its downloads keep on the disk, with sizes; everything can be made again."""
    from napari_lrmil.core.cached_data import clear_cached, list_cached

    if clear:
        removed = clear_cached(clear)
        total = format_size(sum(entry.size for entry in removed))
        print_result(f"removed: {', '.join(printable(entry.name) for entry in removed) or 'nothing'} ({total})")
        return
    entries = list(list_cached())
    width = max((len(printable(entry.name)) for entry in entries), default=0)
    for entry in entries:
        print_result(f"{printable(entry.name).ljust(width)}  {format_size(entry.size):>9}  {entry.about}, {entry.path}")
    print_result(f"{len(entries)} entries, {format_size(sum(entry.size for entry in entries))}")
