"""Option ``--part`` of ``predict`` and ``features``: one of several calls that share a cohort, as in a job array."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, TypeVar

import typer

from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.formatting import format_count

Item = TypeVar("Item")
PartOption = Annotated[
    str | None,
    typer.Option("--part", metavar="K/N", help="every N-th slide only, from the K-th; N calls share OUT"),
]


def take_part(slides: Sequence[Item], part: str | None) -> list[Item]:
    """Return every N-th slide from the K-th, for a part ``K/N``; all without a part.

    Parts hold neighbours of a list in turn, because slides of one scanner or size often stand together.

    Raises
    ------
    ConfigError
        If the part is not ``K/N`` with K from 1 to N, or the cohort has fewer than K slides.
    """
    if part is None:
        return list(slides)
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", part.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(f"--part {part}: expected K/N with K from 1 to N, such as 3/20")
    k, n = int(match[1]), int(match[2])
    if k > len(slides):
        raise ConfigError(
            f"--part {part}: the cohort has {format_count(len(slides), 'slide')}, so part {k} has none; use fewer parts"
        )
    return list(slides[k - 1 :: n])
