"""Slides that are open for analysis, and where their tissue is: found once, used by every question.

They are apart from those on the screen, so that a long read for one never waits for the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil.core.slides.slide import Slide

if TYPE_CHECKING:
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.patching.grid import TissueGrid
    from napari_lrmil.core.patching.tissue import Mask

SlideOpener = Callable[[Path, float | None], Slide]


@dataclass(frozen=True)
class SlideChoice:
    """A slide that may be analysed: its layer's name, its file, its µm per pixel, and those that the user gave."""

    name: str
    path: Path
    mpp: float
    given_mpp: float | None = None


class OpenSlides:
    """Open slides and their tissue. Safe from several threads; `close` it at the end.

    Parameters
    ----------
    open_slide
        Opens a slide of which a user may have given the µm per pixel.
    """

    def __init__(self, open_slide: SlideOpener) -> None:
        self._open = open_slide
        self._slides: dict[SlideChoice, Slide] = {}
        self._grounds: dict[tuple[SlideChoice, str], TissueGrid] = {}
        self._lock = threading.RLock()

    def get_slide(self, choice: SlideChoice) -> Slide:
        """Return the slide, opened if it was not open."""
        with self._lock:
            if choice not in self._slides:
                self._slides[choice] = self._open(choice.path, choice.given_mpp)
            return self._slides[choice]

    def get_cached_tissue_grid(self, choice: SlideChoice, bundle: Bundle) -> TissueGrid | None:
        """Return where the tissue is, where that is known already."""
        with self._lock:
            return self._grounds.get((choice, _plan(bundle)))

    def get_tissue_grid(self, choice: SlideChoice, bundle: Bundle) -> TissueGrid:
        """Return where the tissue is, found now if it was not known; see `core.grid.grid_of` for what may go wrong."""
        from napari_lrmil.core.patching.grid import find_tissue_grid

        found = self.get_cached_tissue_grid(choice, bundle)
        if found is None:
            found = find_tissue_grid(self.get_slide(choice), bundle.card.plan, bundle.card.tissue)
            with self._lock:
                found = self._grounds.setdefault((choice, _plan(bundle)), found)
        return found

    def set_edited_mask(self, choice: SlideChoice, bundle: Bundle, mask: Mask) -> TissueGrid:
        """Take a mask that was changed by hand, of the same raster, and return what it gives."""
        from napari_lrmil.core.patching.grid import tissue_grid_from_mask

        changed = tissue_grid_from_mask(choice.path, self.get_tissue_grid(choice, bundle), mask, bundle.card.tissue)
        with self._lock:
            self._grounds[choice, _plan(bundle)] = changed
        return changed

    def discard_edit(self, choice: SlideChoice, bundle: Bundle) -> None:
        """Find the tissue anew when it is next asked for."""
        with self._lock:
            self._grounds.pop((choice, _plan(bundle)), None)

    def close_others(self, choices: Collection[SlideChoice]) -> None:
        """Close the slides that are not among `choices`."""
        with self._lock:
            gone = [self._slides.pop(choice) for choice in [*self._slides] if choice not in choices]
            self._grounds = {key: ground for key, ground in self._grounds.items() if key[0] in choices}
        for slide in gone:
            slide.close()

    def close(self) -> None:
        """Close all slides."""
        self.close_others(())


def _plan(bundle: Bundle) -> str:
    """Return what of a bundle decides where patches lie."""
    return f"{bundle.card.plan} {bundle.card.tissue}"
