"""Why something cannot be asked of a slide, in a sentence; an empty one where it can. No Qt, no napari."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from numpy.typing import NDArray

from napari_lrmil.core.geometry import MPP_TOLERANCE, BoxLevel0
from napari_lrmil.core.patching.regions import Region
from napari_lrmil.core.patching.roi import Kind, RegionOfInterest
from napari_lrmil.plugin.session.open_slides import SlideChoice
from napari_lrmil.plugin.session.what_if import WhatIf

if TYPE_CHECKING:
    import numpy as np

    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.patching.grid import TissueGrid


def why_too_coarse(slide: SlideChoice | None, wanted_mpp: float, who: str) -> str:
    """Return why `who`, which needs `wanted_mpp` µm per pixel, cannot read a slide."""
    if slide is None or slide.mpp <= wanted_mpp * (1 + MPP_TOLERANCE):
        return ""
    seen = f"The slide has {slide.mpp:.3g} µm per pixel at best"
    return f"{seen}, too coarse for the {who}, which needs {wanted_mpp:g} or finer."


def why_teacher_unavailable(slide: SlideChoice | None, bundle: Bundle | None) -> str:
    """Return why the teacher of a model cannot read a slide."""
    if slide is None or bundle is None:
        return "Choose a slide and a model first."
    if not bundle.has_teacher:
        return "This model brings no teacher (HR)."
    return why_too_coarse(slide, bundle.card.hr_mpp, "teacher (HR)")


def why_roi_missing(kind: Kind, regions: Sequence[Region], view: BoxLevel0 | None) -> str:
    """Return why it is not known which part of the slide is meant."""
    if kind == "region" and not regions:
        return "No region is drawn: draw one with the button below, or import regions."
    return "The visible region is not known yet: move the view." if kind == "view" and view is None else ""


def why_roi_empty(scope: RegionOfInterest, ground: TissueGrid, meant: NDArray[np.bool_], what_if: WhatIf) -> str:
    """Return why there is nothing to look at where `meant` (N,) marks the patches of a scope."""
    if meant.any():
        return ""
    if what_if != WhatIf():
        return f"Nothing is left of the {scope.text}: undo what was left out, or choose another part."
    return f"The {scope.text} holds no patch: {scope.emptied_by(ground.grid)}"
