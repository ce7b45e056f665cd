"""State of a worklist: its entries, their order on the screen, and the current one. No Qt, no napari."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from napari_lrmil.core.worklist.entry import Status, WorklistEntry
from napari_lrmil.core.worklist.order import SortKey, filter_entries, sort_entries

BY_ANSWER = (SortKey.ANSWER, SortKey.PROBABILITY)


@dataclass(frozen=True)
class Arrangement:
    """The user's choice of order and selection.

    Attributes
    ----------
    key, descending
        Column by which the list is sorted, and whether the greatest value comes first.
    text
        Words to search for.
    statuses
        States that are listed; none lists all.
    """

    key: SortKey = SortKey.LISTED
    descending: bool = False
    text: str = ""
    statuses: tuple[Status, ...] = ()


@dataclass
class SlideOrder:
    """Entries of a list and the order in which they are paged through.

    The order changes only when the user arranges the list: a slide that gets a verdict does not jump away.

    Attributes
    ----------
    entries
        All entries, in the order of the list.
    rows
        Indices of the listed entries, in the order of the screen.
    current
        Index of the entry that is shown; None before the first.
    is_hidden
        Whether the answer of an entry is hidden. The order then does not tell it.
    """

    entries: list[WorklistEntry] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    current: int | None = None
    arrangement: Arrangement = field(default_factory=Arrangement)
    is_hidden: Callable[[WorklistEntry], bool] = lambda _: False

    def set_entries(self, entries: Sequence[WorklistEntry]) -> None:
        """Replace the whole list; nothing is current then."""
        self.entries, self.current = list(entries), None
        self.arrange(self.arrangement)

    def arrange(self, arrangement: Arrangement) -> None:
        """Sort and select anew."""
        self.arrangement = arrangement
        entries = self._without_hidden() if arrangement.key in BY_ANSWER else self.entries
        order = sort_entries(entries, arrangement.key, descending=arrangement.descending)
        index_of = {id(entry): index for index, entry in enumerate(entries)}
        indices = [index_of[id(entry)] for entry in order]
        listed = filter_entries(self.entries, text=arrangement.text, statuses=arrangement.statuses)
        listed_ids = {id(entry) for entry in listed}
        self.rows = [index for index in indices if id(self.entries[index]) in listed_ids]

    def _without_hidden(self) -> list[WorklistEntry]:
        return [replace(entry, answer=None) if self.is_hidden(entry) else entry for entry in self.entries]

    def step(self, by: int) -> int | None:
        """Return the index of the entry `by` rows further; None at the ends of the list.

        An entry that is not listed any more, because the list was arranged anew, is left for the first or last row.
        """
        if not self.rows:
            return None
        if self.current not in self.rows:
            return self.rows[0 if by > 0 else -1]
        row = self.rows.index(self.current) + by
        return self.rows[row] if 0 <= row < len(self.rows) else None

    def index_of_path(self, path: Path) -> int | None:
        """Return the index of the entry of a slide file; None if it is not in the list."""
        return next((index for index, entry in enumerate(self.entries) if entry.path == path), None)

    def count(self, statuses: Collection[Status]) -> int:
        """Return the number of entries in one of these states."""
        return sum(entry.status in statuses for entry in self.entries)
