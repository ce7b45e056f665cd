"""Slides that are open for analysis, with their tissue grids; each grid is computed once.

The slides on the screen are opened separately. A long read of the analysis therefore never blocks the display.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil.core.slides.slide import Slide

if TYPE_CHECKING:
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.patching.grid import TissueGrid
    from napari_lrmil.core.patching.stain import StainTransform
    from napari_lrmil.core.patching.tissue import Mask, TissueConfig

SlideOpener = Callable[[Path, float | None], Slide]  # from a file and the µm per pixel that the user gave, if any


@dataclass(frozen=True)
class SlideChoice:
    """A slide that can be analysed.

    Attributes
    ----------
    name
        Name of its layer.
    path
        The slide's file.
    mpp
        µm per level-0 pixel.
    given_mpp
        µm per level-0 pixel as the user gave it; None if the file states it.
    is_phantom
        Whether the file says that it is a phantom, so that the model of phantoms suits it.
    """

    name: str
    path: Path
    mpp: float
    given_mpp: float | None = None
    is_phantom: bool = False


class OpenSlides:
    """Open slides and their tissue grids. Thread-safe; call `close` at the end.

    Parameters
    ----------
    open_slide
        Opens a slide.
    """

    def __init__(self, open_slide: SlideOpener) -> None:
        self._open = open_slide
        self._slides: dict[SlideChoice, Slide] = {}
        self._tissue_grids: dict[tuple[SlideChoice, str], TissueGrid] = {}
        self._stains: dict[tuple[SlideChoice, str], tuple[TissueGrid, StainTransform]] = {}
        self._ahead: frozenset[SlideChoice] = frozenset()  # stay open though the viewer does not show them yet
        self._without_artefacts: set[Path] = set()
        self._lock = threading.RLock()  # the live view and a tissue search may run at the same time

    def get_slide(self, choice: SlideChoice) -> Slide:
        """Return the slide, and open it if necessary."""
        with self._lock:
            if choice not in self._slides:
                self._slides[choice] = self._open(choice.path, choice.given_mpp)
            return self._slides[choice]

    def get_cached_tissue_grid(self, choice: SlideChoice, bundle: Bundle) -> TissueGrid | None:
        """Return the tissue grid if it has been computed, else None."""
        with self._lock:
            return self._tissue_grids.get((choice, self._grid_key(choice, bundle)))

    def get_tissue_grid(self, choice: SlideChoice, bundle: Bundle) -> TissueGrid:
        """Return the tissue grid, and compute it if necessary; raises what `find_tissue_grid` raises."""
        from napari_lrmil.core.patching.grid import find_tissue_grid

        tissue_grid = self.get_cached_tissue_grid(choice, bundle)
        if tissue_grid is None:
            # Outside the lock, because it takes seconds. If two threads compute it, the first result stays.
            slide = self.get_slide(choice)
            slide.count_damaged_tiles()  # `predict` checks their number
            config = self._tissue_config(choice, bundle)
            tissue_grid = find_tissue_grid(slide, bundle.card.plan, config)
            _ = tissue_grid.tissue.artefacts  # searched here and not in the window, which shows them
            with self._lock:
                tissue_grid = self._tissue_grids.setdefault((choice, f"{bundle.card.plan} {config}"), tissue_grid)
        return tissue_grid

    def get_cached_stain(self, choice: SlideChoice, bundle: Bundle, tissue_grid: TissueGrid) -> StainTransform | None:
        """Return the slide's transform to the colour of the model, if it was measured on this very tissue."""
        with self._lock:
            measured_on, stain = self._stains.get((choice, bundle.sha256), (None, None))
        return stain if measured_on is tissue_grid else None

    def get_stain(self, choice: SlideChoice, bundle: Bundle, tissue_grid: TissueGrid) -> StainTransform | None:
        """Return the slide's transform, and measure it if necessary; None if the model leaves colours as they are.

        Raises what `measure_stain` raises.
        """
        stain, target = self.get_cached_stain(choice, bundle, tissue_grid), bundle.card.stain
        if stain is None and target is not None:
            # Outside the lock, because it reads pixels.
            stain = target.transform(self.get_slide(choice), tissue_grid.grid)
            with self._lock:
                self._stains[choice, bundle.sha256] = tissue_grid, stain
        return stain

    def set_edited_mask(self, choice: SlideChoice, bundle: Bundle, mask: Mask) -> TissueGrid:
        """Replace the tissue mask by one that the user edited, and return the grid that follows from it.

        Parameters
        ----------
        choice, bundle
            The slide and the model.
        mask
            Of the same raster as the mask of the present grid.
        """
        from napari_lrmil.core.patching.grid import tissue_grid_from_mask

        edited = tissue_grid_from_mask(choice.path, self.get_tissue_grid(choice, bundle), mask, bundle.card.tissue)
        with self._lock:
            self._tissue_grids[choice, self._grid_key(choice, bundle)] = edited
        return edited

    def discard_edit(self, choice: SlideChoice, bundle: Bundle) -> None:
        """Forget the tissue grid; the next request computes it from the slide."""
        with self._lock:
            self._tissue_grids.pop((choice, self._grid_key(choice, bundle)), None)

    def keep_ahead(self, choices: Collection[SlideChoice]) -> None:
        """Keep slides open that the viewer will show next, in place of those that were named before."""
        with self._lock:
            self._ahead = frozenset(choices)

    def close_others(self, choices: Collection[SlideChoice]) -> None:
        """Close all slides except `choices` and those that are kept for the viewer to show next."""
        with self._lock:
            choices = {*choices, *self._ahead}
            removed = [self._slides.pop(choice) for choice in [*self._slides] if choice not in choices]
            self._tissue_grids = {key: grid for key, grid in self._tissue_grids.items() if key[0] in choices}
            self._stains = {key: entry for key, entry in self._stains.items() if key[0] in choices}
            self._without_artefacts &= {choice.path for choice in choices}
        for slide in removed:  # outside the lock, because `close` waits for running reads
            slide.close()

    def close(self) -> None:
        """Close all slides."""
        self.keep_ahead(())
        self.close_others(())

    def exclude_artefacts(self, choice: SlideChoice, exclude: bool) -> None:
        """Leave artefacts out of the tissue of a slide, or not; a model trained without them always does."""
        with self._lock:
            (self._without_artefacts.add if exclude else self._without_artefacts.discard)(choice.path)

    def _tissue_config(self, choice: SlideChoice, bundle: Bundle) -> TissueConfig:
        config = bundle.card.tissue
        return replace(config, exclude_artefacts=True) if choice.path in self._without_artefacts else config

    def _grid_key(self, choice: SlideChoice, bundle: Bundle) -> str:
        """Return what the positions of a slide's patches depend on: models that share it share the grid."""
        return f"{bundle.card.plan} {self._tissue_config(choice, bundle)}"
