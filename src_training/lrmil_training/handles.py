"""Open slides, a bounded number of them: training reads patches of many slides in random order."""

from __future__ import annotations

from collections import OrderedDict

from lrmil_training.cohort import CohortSlide
from napari_lrmil.core.slide import Slide

OPEN_SLIDES = 64  # each is an open file with its tables of tiles


class SlideHandles:
    """Slides that stay open until others push them out; they are not pickled, a worker process opens its own."""

    def __init__(self, most: int = OPEN_SLIDES) -> None:
        self.most = most
        self._open: OrderedDict[str, Slide] = OrderedDict()

    def of(self, row: CohortSlide) -> Slide:
        """Return the opened slide of a row."""
        if row.name not in self._open:
            if len(self._open) >= self.most:
                self._open.popitem(last=False)[1].close()
            self._open[row.name] = row.open()
        self._open.move_to_end(row.name)
        return self._open[row.name]

    def close(self) -> None:
        """Give all slides back."""
        while self._open:
            self._open.popitem()[1].close()

    def __getstate__(self) -> dict[str, int]:
        return {"most": self.most}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["most"])  # type: ignore[misc]  # the same start as anew
