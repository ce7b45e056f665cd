"""Summary of the warnings of a cohort: each warning once, with the slides that have it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from napari_lrmil.core.formatting import ABOUT_MODEL
from napari_lrmil.core.results.schema import PredictionFile

MAX_NAMES = 5  # slides that a line names; the table has all of them
MAX_LINES = 12  # a cohort whose slides all say something else must not bury the result
NUMBER = re.compile(r"(?<![\w.-])\d+(?:,\d{3})*(?:\.\d+)?(?![\w-])")  # no part of a name such as test-13


def summarize_warnings(files: Sequence[PredictionFile]) -> Iterator[str]:
    """Yield a line for each warning, the most frequent first. Warnings that differ in numbers alone are one.

    Notices about the model are left out: they hold for every slide, and are printed before the first.
    """
    yield from summarize_slides({file.slide: file.warnings for file in files})


def summarize_slides(warnings_by_slide: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield what `summarize_warnings` does, of slide -> its warnings. Slides without any count too."""
    slides_by_pattern: dict[str, dict[str, str]] = {}  # text without numbers -> slide -> text
    for slide, warnings in warnings_by_slide.items():
        for text in warnings:
            if not text.startswith(ABOUT_MODEL):
                slides_by_pattern.setdefault(NUMBER.sub("#", text), {})[slide] = text
    groups = sorted(slides_by_pattern.values(), key=len, reverse=True)  # stable: equal ones as they came
    for group in groups[:MAX_LINES]:
        yield f"{name_slides(list(group), len(warnings_by_slide))}: {_join_numbers(list(group.values()))}"
    if rest := groups[MAX_LINES:]:
        yield f"{len(rest)} further warnings, of {len(set().union(*rest))} slides, are not listed here"


def name_slides(names: Sequence[str], total: int) -> str:
    """Return the number of slides of all, and the names of the first, unless it is every slide."""
    count = f"{len(names)} of {total} slides"
    if len(names) == total:
        return count
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{count} ({', '.join(names[:MAX_NAMES])}{more})"


def _join_numbers(texts: Sequence[str]) -> str:
    """Return texts that differ in numbers alone as one text, with ``least to most`` for numbers that differ."""
    columns = zip(*(NUMBER.findall(text) for text in texts), strict=True)
    ranges = iter([_range(sorted(set(numbers), key=_value)) for numbers in columns])
    return NUMBER.sub(lambda _: next(ranges), texts[0])


def _range(numbers: Sequence[str]) -> str:
    return numbers[0] if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def _value(number: str) -> float:
    return float(number.replace(",", ""))
