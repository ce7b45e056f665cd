"""Order and selection of worklist entries. Pure functions: the list itself is never changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from enum import Enum
from typing import Any

from napari_lrmil.core.worklist.entry import Status, WorklistEntry

_DIGITS = re.compile(r"(\d+)")


class SortKey(Enum):
    """Column by which a worklist is sorted. The values are the words that are shown."""

    LISTED = "order of the list"
    NAME = "name"
    PATIENT = "patient"
    STATUS = "status"
    ANSWER = "class"
    PROBABILITY = "probability"


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Return a key that sorts ``slide 2`` before ``slide 10``, without regard to case."""
    parts = _DIGITS.split(name.casefold())
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts if part)


def sort_entries(entries: Sequence[WorklistEntry], key: SortKey, *, descending: bool = False) -> list[WorklistEntry]:
    """Return the entries in order. Those without a value come last in both directions; ties keep their order.

    Parameters
    ----------
    entries
        In the order of the list.
    key
        Column.
    descending
        Whether the greatest value comes first.
    """
    value = _VALUES.get(key)
    if value is None:
        return list(reversed(entries)) if descending else list(entries)
    with_value = [entry for entry in entries if value(entry) is not None]
    without_value = [entry for entry in entries if value(entry) is None]
    return [*sorted(with_value, key=value, reverse=descending), *without_value]


_STATUS_ORDER = {status: rank for rank, status in enumerate(Status)}
_VALUES: dict[SortKey, Callable[[WorklistEntry], Any]] = {
    SortKey.NAME: lambda entry: natural_key(entry.name),
    SortKey.PATIENT: lambda entry: natural_key(entry.patient) if entry.patient else None,
    SortKey.STATUS: lambda entry: _STATUS_ORDER[entry.status],
    SortKey.ANSWER: lambda entry: entry.answer and natural_key(entry.answer.predicted),
    SortKey.PROBABILITY: lambda entry: entry.answer and entry.answer.probability,
}


def filter_entries(
    entries: Sequence[WorklistEntry],
    *,
    text: str = "",
    statuses: Collection[Status] = (),
    classes: Collection[str] = (),
) -> list[WorklistEntry]:
    """Return the entries that match, in their order.

    Parameters
    ----------
    text
        Words that must all occur in name, patient, comment or reason, without regard to case.
    statuses
        States to keep; none keeps all.
    classes
        Predicted classes to keep; none keeps all, also entries without an answer.
    """
    words = text.casefold().split()
    return [
        entry
        for entry in entries
        if (not statuses or entry.status in statuses)
        and (not classes or (entry.answer is not None and entry.answer.predicted in classes))
        and all(word in _searched_text(entry) for word in words)
    ]


def _searched_text(entry: WorklistEntry) -> str:
    comment = entry.review.comment if entry.review is not None else ""
    return " ".join((entry.name, entry.path.name, entry.patient, comment, entry.reason)).casefold()


def group_by_patient(entries: Sequence[WorklistEntry]) -> dict[str, list[WorklistEntry]]:
    """Return patient -> entries, in the order of first appearance; entries without a patient are under ""."""
    groups: dict[str, list[WorklistEntry]] = {}
    for entry in entries:
        groups.setdefault(entry.patient, []).append(entry)
    return groups
