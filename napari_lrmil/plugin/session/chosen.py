"""The chosen slide, model and part of the slide, and what follows from them. No Qt, no napari."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.patching.regions import Region
from napari_lrmil.core.patching.roi import Kind, RegionOfInterest
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.plugin.session.analyse_state import (
    AnalyseState,
    Facts,
    LayerFact,
    leaves_out_artefacts,
    pick_slide,
    resolve,
    why_run_blocked,
)
from napari_lrmil.plugin.session.choices import Choices
from napari_lrmil.plugin.session.eta import (
    PlannedPatches,
    RunEstimate,
    ThroughputHistory,
    cached_student_attention,
    plan_patches,
)
from napari_lrmil.plugin.session.open_slides import OpenSlides, SlideChoice, SlideOpener
from napari_lrmil.plugin.session.preconditions import why_teacher_unavailable
from napari_lrmil.plugin.session.run_state import ActiveRun, SlideAndModel, outcome_of
from napari_lrmil.plugin.session.slide_memory import SlideMemory
from napari_lrmil.plugin.session.usual_model import UsualModels

if TYPE_CHECKING:
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.patching.grid import TissueGrid
    from napari_lrmil.plugin.session.what_if import WhatIf


class ChosenAnalysis:
    """Choices of the Analyse dock, and the answers so far by slide and model.

    Parameters
    ----------
    open_slide
        Opens a slide for the analysis, separately from the one on the screen; None opens the file.
    settings_store
        Store of user settings and of the times of earlier runs; None takes the user's.

    Attributes
    ----------
    changed
        Signal: something that the dock displays has changed.
    failed
        Signal with a sentence: there is no prediction, or no model, and why.
    choices
        The user's choices.
    slides
        The slides of the viewer.
    bundle
        The chosen model, open; None if none is chosen or it cannot be opened.
    """

    changed = Signal()
    failed = Signal(str)

    def __init__(self, open_slide: SlideOpener | None, settings_store: SettingsStore | None) -> None:
        from napari_lrmil.core.features.embedding_cache import EmbeddingCache

        self.settings_store = settings_store or SettingsStore()
        # Both live as long as the session: a second run on the same slide and model reads no pixel again.
        self.open_slides, self.cache = OpenSlides(open_slide or self._open_slide), EmbeddingCache()
        self.choices = Choices()
        self.slides: tuple[SlideChoice, ...] = ()
        self.bundle: Bundle | None = None
        self._model_problem = ""
        self._is_model_automatic = False
        self._usual_models = UsualModels(self.settings_store)
        self._throughput = ThroughputHistory(self.settings_store)
        self._run: ActiveRun | None = None
        self._memory = SlideMemory()
        self._awaited: tuple[Path, Prediction | None, str] | None = None  # a slide to show as soon as it is open
        # What the last patch selection was computed for: it is repeated only if its input has changed.
        self._selection: tuple[tuple[object, ...], NDArray[np.bool_]] | None = None

    def _open_slide(self, path: Path, mpp: float | None) -> Slide:
        return Slide(path, mpp=mpp, remembered=self.settings_store.remembered_mpp)

    def close(self) -> None:
        """Close all slides."""
        self.open_slides.close()

    # ------------------------------------------------------------ slides

    def set_slides(self, slides: Sequence[SlideChoice]) -> None:
        """Set the slides of the viewer and close all others.

        The chosen slide stays chosen if it is among them, under whatever name; else the last one is chosen. A slide
        for which `show_slide` waits is chosen instead.
        """
        awaited, previous = self._awaited, self.slides
        self.slides = tuple(slides)
        for old in previous:
            if old not in self.slides:
                self._move(old, next((new for new in self.slides if replace(new, name=old.name) == old), None))
        if awaited is not None and any(slide.path == awaited[0] for slide in self.slides):
            self.show_slide(*awaited)
        elif self.slide not in self.slides:
            self.choose_slide(pick_slide(self.slide, self.slides))
            self._awaited = awaited
        self.open_slides.close_others(self.slides)
        self.changed.emit()

    def _move(self, old: SlideChoice, new: SlideChoice | None) -> None:
        """Follow a slide to its new name; None forgets it, because it was closed."""
        self._memory.move(old, new)
        if new is not None and self.slide == old:
            self.choices = replace(self.choices, slide=new)
        if new is not None and self._run is not None and self._run.key[0] == old:
            self._run = replace(self._run, key=(new, self._run.key[1]))

    def show_slide(self, slide: SlideChoice | Path, prediction: Prediction | None = None, reason: str = "") -> bool:
        """Show a slide in dock, canvas and minimap, and hide all others. The way for other docks to change the slide.

        A slide that is not open yet is shown as soon as its layers are in the viewer; a later choice of another slide
        ends the wait. A run that is active goes on, and its answer is stored for its own slide.

        Parameters
        ----------
        slide
            The slide, or its file.
        prediction
            An answer for it that was computed before. It is shown without computing as long as its model is chosen.
        reason
            Sentence for the dock, if the user did not ask for this slide by name; empty for none.

        Returns
        -------
        bool
            Whether the slide is shown now, and not later.
        """
        path = slide if isinstance(slide, Path) else slide.path
        target = slide if isinstance(slide, SlideChoice) and slide in self.slides else None
        target = target or next((candidate for candidate in self.slides if candidate.path == path), None)
        if target is None:
            self._awaited = (path, prediction, reason)
            return False
        if prediction is not None:
            self._memory.store_outcome((target, prediction.bundle_sha256), outcome_of(prediction))
        self.choose_slide(target, reason)
        return True

    def choose_slide(self, slide: SlideChoice | None, reason: str = "") -> None:
        """Choose a slide of the session. Its own choices, and its answer by the chosen model, come back.

        Parameters
        ----------
        slide
            The slide; None for none.
        reason
            Why it is chosen, for the dock; empty if the user chose it there.
        """
        self._awaited = None
        if slide != self.slide:
            if self.slide is not None and self.slide in self.slides:
                self._memory.store_choices(self.slide, self.choices.of_slide)
            self.choices = replace(self.choices, slide=slide, of_slide=self._memory.take_choices(slide))
            self._on_slide_changed()
            usual = self.bundle_name if slide is None else self._usual_models.model_of(slide)
            if slide is not None:
                self._is_model_automatic = self._usual_models.chosen_for(slide.path.parent) is None
            if usual != self.bundle_name:
                self._open_bundle(usual or None)
        self.choices = replace(self.choices, reason=reason)
        self.changed.emit()

    def _on_slide_changed(self) -> None:
        """Forget what was computed for the slide that was chosen before."""

    # ------------------------------------------------------------ model

    def choose_bundle(self, location: str | Path | None) -> None:
        """Choose the model for the slides of this folder; without a slide, for all slides of the session.

        If it cannot be opened, no model is chosen and `failed` is emitted.

        Parameters
        ----------
        location
            A bundle folder, or the name of a shipped model; None chooses no model.
        """
        self._is_model_automatic = False
        if problem := self._usual_models.remember(self.slide, str(location or "")):
            self.failed.emit(problem)
        self._open_bundle(location)

    def _open_bundle(self, location: str | Path | None) -> None:
        from napari_lrmil.core.models.bundle import Bundle
        from napari_lrmil.core.models.hub_bundle import is_hub_bundle, require_cached_bundle

        self._model_problem = ""
        try:
            if location is not None and is_hub_bundle(location):
                require_cached_bundle(str(location))
            self.bundle = Bundle(location) if location is not None else None
            self.choices = replace(self.choices, model=str(location or ""))
        except LrmilError as error:
            self.bundle, self.choices = None, replace(self.choices, model="")
            self._model_problem = str(error)
            self.failed.emit(self._model_problem)
        self.changed.emit()

    # ------------------------------------------------------------ other choices

    def _choose(self, **fields: Any) -> None:
        self.choices = replace(self.choices, **fields)
        self.changed.emit()

    def choose_device(self, name: str) -> None:
        """Choose the device: ``auto``, ``cpu``, ``cuda`` or ``mps``."""
        self._choose(device=name)

    def choose_teacher(self, patches: TeacherPatches) -> None:
        """Choose the LR patches that the teacher reads in addition to the student."""
        self._choose(teacher=patches)

    def choose_roi_kind(self, kind: Kind) -> None:
        """Choose the part of the slide for the next run: all of it, the view, or the drawn regions."""
        self._choose(of_slide=self.choices.of_slide.choose_kind(kind))

    def use_drawn_regions(self) -> None:
        """Make the drawn regions the part of the slide, because the user draws or imports some.

        A what-if step that uses them up returns to the part that was chosen before.
        """
        self._choose(of_slide=self.choices.of_slide.use_drawn_regions(self.prediction))

    def set_view(self, view: Region) -> None:
        """Set the visible part of the chosen slide, in level-0 pixels."""
        self.choices = replace(self.choices, of_slide=replace(self.choices.of_slide, view=view))
        if self.roi_kind == "view":
            self.changed.emit()

    def set_regions(self, regions: Sequence[Region]) -> None:
        """Set the drawn regions of the chosen slide, in level-0 pixels."""
        if regions or self.regions or self.choices.of_slide.region_warnings:  # else nothing changes
            self._choose(of_slide=self.choices.of_slide.set_regions(regions))

    def add_region_warnings(self, warnings: Sequence[str]) -> None:
        """Add sentences about an imported file; results of drawn regions carry them."""
        of_slide = self.choices.of_slide
        all_warnings = tuple(dict.fromkeys((*of_slide.region_warnings, *warnings)))
        self.choices = replace(self.choices, of_slide=replace(of_slide, region_warnings=all_warnings))

    # ------------------------------------------------------------ choices by name

    @property
    def slide(self) -> SlideChoice | None:
        """The chosen slide."""
        return self.choices.slide

    @property
    def bundle_name(self) -> str:
        """The model as the user named it: a folder, or the name of a shipped model; empty for none."""
        return self.choices.model

    @property
    def is_model_automatic(self) -> bool:
        """Whether the user did not choose the model: a phantom was shown, which has a model of its own."""
        return self._is_model_automatic

    def is_model_for(self, folder: Path) -> bool:
        """Return whether the present model may run unasked on tissue in a folder: not if a phantom brought it along."""
        return not self._is_model_automatic or self._usual_models.chosen_for(folder) == self.bundle_name

    @property
    def device(self) -> str:
        """The chosen device."""
        return self.choices.device

    @property
    def teacher(self) -> TeacherPatches:
        """LR patches that the teacher reads in addition to the student."""
        return self.choices.teacher

    @property
    def follows_view(self) -> bool:
        """Whether the student analyses what is visible while the user moves."""
        return self.choices.follows_view

    @property
    def roi_kind(self) -> Kind:
        """Part of the slide for the next run."""
        return self.choices.of_slide.roi_kind

    @property
    def view(self) -> Region | None:
        """Visible part of the chosen slide in level-0 pixels; None while it is unknown."""
        return self.choices.of_slide.view

    @property
    def regions(self) -> tuple[Region, ...]:
        """Drawn regions of the chosen slide in level-0 pixels."""
        return self.choices.of_slide.regions

    @property
    def allow_missing(self) -> bool:
        """Whether the chosen slide is analysed even if more than a third of its tissue is missing."""
        return self.choices.of_slide.allow_missing

    @property
    def excludes_artefacts(self) -> bool:
        """Whether artefacts are left out of the tissue of the chosen slide, by choice or by the model."""
        return leaves_out_artefacts(self.choices, self.bundle)

    @property
    def what_if(self) -> WhatIf:
        """Regions that are excluded or kept at present."""
        return self.choices.of_slide.what_if

    @property
    def scope(self) -> RegionOfInterest:
        """Part of the slide that a run would analyse."""
        return self.choices.of_slide.scope

    # ------------------------------------------------------------ what follows

    def resolve(self, layers: Sequence[LayerFact] = (), *, is_grid_on: bool = False) -> AnalyseState:
        """Return the state of dock and canvas.

        Parameters
        ----------
        layers, is_grid_on
            The layers of this plugin in the viewer, and whether the user switched napari's grid on.
        """
        return resolve(self.choices, replace(self._facts(layers, is_grid_on), estimate=self.estimate))

    def _facts(self, layers: Sequence[LayerFact] = (), is_grid_on: bool = False) -> Facts:
        tissue_grid = self.tissue_grid
        return Facts(
            slides=self.slides,
            bundle=self.bundle,
            model_problem=self._model_problem,
            tissue_grid=tissue_grid,
            is_selected=self._selected_patches(tissue_grid) if tissue_grid is not None else None,
            run=self._run,
            outcome=self._memory.outcome(self._key),
            layers=tuple(layers),
            is_grid_on=is_grid_on,
        )

    @property
    def awaits_slide(self) -> bool:
        """Whether `show_slide` waits for a slide to be opened."""
        return self._awaited is not None

    @property
    def _key(self) -> SlideAndModel | None:
        """Slide and model whose answer is shown; None without a slide or a model."""
        return None if self.slide is None or self.bundle is None else (self.slide, self.bundle.sha256)

    @property
    def prediction(self) -> Prediction | None:
        """The answer for the chosen slide and model; None without one. During a new run the earlier answer stays."""
        return self._memory.outcome(self._key).prediction

    @property
    def tissue_grid(self) -> TissueGrid | None:
        """Tissue grid of the chosen slide; None before it has been computed."""
        if self.slide is None or self.bundle is None:
            return None
        return self.open_slides.get_cached_tissue_grid(self.slide, self.bundle)

    @property
    def opened_slide(self) -> Slide:
        """The chosen slide, open for analysis.

        Raises
        ------
        LrmilError
            If no slide is chosen, or its file cannot be opened any more.
        """
        if self.slide is None:
            raise LrmilError("no slide is open; drop one on the window")
        return self.open_slides.get_slide(self.slide)

    @property
    def run_blocked_by(self) -> str:
        """Why no run can start; empty if one can."""
        return why_run_blocked(self.choices, self._facts())

    @property
    def teacher_blocked_by(self) -> str:
        """Why the teacher cannot run; empty if it can."""
        return why_teacher_unavailable(self.slide, self.bundle)

    @property
    def runs_teacher(self) -> bool:
        """Whether a run would include the teacher."""
        return self.teacher != TeacherPatches.NONE and not self.teacher_blocked_by

    @property
    def estimate(self) -> RunEstimate | None:
        """Expected cost of a run; None before the tissue grid has been computed."""
        planned = self.planned_patches
        return planned.estimate(self.teacher if self.runs_teacher else TeacherPatches.NONE) if planned else None

    @property
    def planned_patches(self) -> PlannedPatches | None:
        """Patches that a run would read; None if there are none, or before the tissue grid has been computed."""
        tissue_grid = self.tissue_grid
        if tissue_grid is None or self.bundle is None or not self._selected_patches(tissue_grid).any():
            return None
        expected_seconds = partial(self._throughput.expected_seconds, self.bundle.sha256, self.device)
        grid = tissue_grid.grid.select(self._selected_patches(tissue_grid))
        stain = self.open_slides.get_cached_stain(self.slide, self.bundle, tissue_grid) if self.slide else None
        slide, bundle, cache = self.opened_slide, self.bundle, self.cache
        attention = cached_student_attention(self.prediction, grid, slide, bundle, cache, stain)
        return plan_patches(grid, attention, expected_seconds)

    def _selected_patches(self, tissue_grid: TissueGrid) -> NDArray[np.bool_]:
        """Return (N,) which LR patches a run would read; cached, because the dock reads it at every change."""
        key = (tissue_grid, self.roi_kind, self.view, self.regions, self.what_if)
        if self._selection is None or self._selection[0] != key:
            self._selection = key, self.scope.select(tissue_grid).is_selected
        return self._selection[1]
