"""Reasons that prevent a run, as sentences for the user; an empty string means that nothing does. No Qt, no napari."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from numpy.typing import NDArray

from napari_lrmil.core.geometry import MPP_TOLERANCE
from napari_lrmil.core.patching.regions import Region
from napari_lrmil.core.patching.roi import Kind, RegionOfInterest
from napari_lrmil.plugin.session.open_slides import SlideChoice
from napari_lrmil.plugin.session.scope_text import scope_words
from napari_lrmil.plugin.session.what_if import WhatIf

if TYPE_CHECKING:
    import numpy as np

    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.patching.grid import TissueGrid

STUDENT = "student (LR)"  # name of the network in sentences for the user
NO_MODEL = "No model is chosen. Choose one that knows this tissue: another one's answer would mean nothing."
NOT_DISTILLED = "This model was not distilled: there is no teacher to compare with."
RUN_ACTIVE = "Wait for the run to end, or cancel it."
TISSUE_UNKNOWN = "The tissue of the slide is not known yet."


def why_too_coarse(slide: SlideChoice | None, wanted_mpp: float, reader: str) -> str:
    """Return why a network cannot read a slide.

    Parameters
    ----------
    slide
        The slide; None gives no reason.
    wanted_mpp
        µm per pixel that the network needs.
    reader
        Name of the network in the sentence.
    """
    # The tolerance is that of the choice of a level: 5 % coarser counts as fine enough.
    if slide is None or slide.mpp <= wanted_mpp * (1 + MPP_TOLERANCE):
        return ""
    resolution = f"The slide has {slide.mpp:.3g} µm per pixel at best"
    return f"{resolution}, too coarse for the {reader}, which needs {wanted_mpp:g} or finer."


def why_teacher_unavailable(slide: SlideChoice | None, bundle: Bundle | None) -> str:
    """Return why the teacher of a model cannot read a slide."""
    if slide is None or bundle is None:
        return "Choose a slide and a model first."
    if not bundle.card.distilled:
        return NOT_DISTILLED
    if not bundle.has_teacher:
        return "This model has no teacher (HR)."
    return why_too_coarse(slide, bundle.card.hr_mpp, "teacher (HR)")


def why_roi_missing(kind: Kind, regions: Sequence[Region], view: Region | None) -> str:
    """Return why the part of the slide is undefined: no region is drawn, or the view is unknown."""
    if kind == "region" and not regions:
        return "No region is drawn: draw one with the button below, or import regions."
    return "The visible region is not known yet: move the view." if kind == "view" and view is None else ""


def why_roi_empty(
    scope: RegionOfInterest, tissue_grid: TissueGrid, is_selected: NDArray[np.bool_], what_if: WhatIf
) -> str:
    """Return why a part of the slide contains no patch.

    Parameters
    ----------
    scope
        The part of the slide.
    tissue_grid
        Tissue of the slide.
    is_selected
        (N,) which LR patches of the grid belong to the part.
    what_if
        Regions that the user excluded or kept.
    """
    if is_selected.any():
        return ""
    if what_if != WhatIf():  # the likelier cause, and the one that the user can undo
        return f"Nothing is left of the {scope_words(scope)}: undo what was left out, or choose another part."
    return f"The {scope_words(scope)} holds no patch: {scope.emptied_by(tissue_grid)}"
