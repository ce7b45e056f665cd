"""Choices of the user in the Analyse dock, as frozen values. No Qt, no napari."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.patching.regions import Region
from napari_lrmil.core.patching.roi import Kind, RegionOfInterest
from napari_lrmil.plugin.session.open_slides import SlideChoice
from napari_lrmil.plugin.session.what_if import WhatIf

if TYPE_CHECKING:
    from napari_lrmil.core.inference.prediction import Prediction


@dataclass(frozen=True)
class SlideChoices:
    """Choices that hold for one slide. They come back together with it.

    Attributes
    ----------
    roi_kind
        Part of the slide for the next run: all of it, the view, or the drawn regions.
    kind_before_drawing
        That part before the user began to draw. A what-if step uses up the drawn regions and returns to it.
    view
        Visible part in level-0 pixels, a rectangle that may be rotated; None while it is unknown.
    regions
        Drawn regions in level-0 pixels.
    region_warnings
        Sentences about the files that regions were imported from.
    what_if_steps
        What-if steps, of which the last is in effect; the others are for undo.
    allow_missing
        Whether the slide is analysed even if more than a third of its tissue is missing.
    exclude_artefacts
        Whether pen, air bubbles and blur are left out of the tissue although the model was trained with them.
    """

    roi_kind: Kind = "slide"
    kind_before_drawing: Kind = "slide"
    view: Region | None = None
    regions: tuple[Region, ...] = ()
    region_warnings: tuple[str, ...] = ()
    what_if_steps: tuple[WhatIf, ...] = (WhatIf(),)
    allow_missing: bool = False
    exclude_artefacts: bool = False

    @property
    def what_if(self) -> WhatIf:
        """Regions that are excluded or kept at present."""
        return self.what_if_steps[-1]

    @property
    def can_undo(self) -> bool:
        """Whether there is a what-if step to undo."""
        return len(self.what_if_steps) > 1

    @property
    def analysed_regions(self) -> tuple[Region, ...]:
        """Drawn regions that no what-if step has used; all of them if every one is used."""
        used = (*self.what_if.excluded, *self.what_if.included)
        return tuple(region for region in self.regions if region not in used) or self.regions

    @property
    def scope(self) -> RegionOfInterest:
        """Part of the slide that a run or a what-if step answers about."""
        if self.roi_kind == "view" and self.view is not None:
            return self.make_scope("view", (self.view,))
        if self.roi_kind == "region" and self.regions:
            return self.make_scope("region", self.analysed_regions)
        return self.make_scope("slide", ())

    def make_scope(self, kind: Kind, regions: tuple[Region, ...]) -> RegionOfInterest:
        """Return a part of the slide with the present what-if step applied."""
        what_if = self.what_if
        warnings = self.region_warnings if kind == "region" or what_if != WhatIf() else ()
        return RegionOfInterest(kind, regions, what_if.included, what_if.excluded, warnings=warnings)

    def choose_kind(self, kind: Kind) -> SlideChoices:
        """Return the choices with another part of the slide."""
        return replace(self, roi_kind=kind, kind_before_drawing=kind)

    def use_drawn_regions(self, last: Prediction | None) -> SlideChoices:
        """Return the choices after the user began to draw: drawn regions are the part, until a step uses them up.

        Parameters
        ----------
        last
            The last prediction. Further regions drawn after one of regions do not end the choice of regions.
        """
        before = self.kind_before_drawing if self.roi_kind == "region" else self.roi_kind
        if self.roi_kind == "region" and last is not None and last.scope.kind == "region":
            before = "region"
        return replace(self, roi_kind="region", kind_before_drawing=before)

    def set_regions(self, regions: Sequence[Region]) -> SlideChoices:
        """Return the choices with other drawn regions; without any, warnings about their files end."""
        return replace(self, regions=tuple(regions), region_warnings=self.region_warnings if regions else ())

    def add_step(self, what_if: WhatIf) -> SlideChoices:
        """Return the choices with one more what-if step."""
        stepped, kind = replace(self, what_if_steps=(*self.what_if_steps, what_if)), self.roi_kind
        if kind == "region":  # the regions drawn last belong to the step, they are not the part to analyse
            kind = self.kind_before_drawing
            used = (*what_if.excluded, *what_if.included)
            if kind == "region" and all(region in used for region in self.regions):
                kind = "slide"
        return replace(stepped, roi_kind=kind)

    def undo_step(self) -> SlideChoices:
        """Return the choices without the last what-if step; the first state cannot be undone."""
        return replace(self, what_if_steps=self.what_if_steps[:-1] or self.what_if_steps)


@dataclass(frozen=True)
class Choices:
    """All choices of the dock.

    Attributes
    ----------
    slide
        The chosen slide.
    reason
        Why this slide was chosen by other means than the list of slides; empty if by the list.
    model
        The model as the user named it: a folder, or the name of a shipped model; empty for none.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    teacher
        LR patches that the teacher reads in addition to the student.
    follows_view
        Whether the student analyses what is visible while the user moves.
    of_slide
        Choices that hold for the chosen slide only.
    """

    slide: SlideChoice | None = None
    reason: str = ""
    model: str = ""
    device: str = "auto"
    teacher: TeacherPatches = TeacherPatches.NONE
    follows_view: bool = False
    of_slide: SlideChoices = field(default_factory=SlideChoices)
