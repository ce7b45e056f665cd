"""Model of the Compare dock: teacher budget, figures of a comparison, lesions, and cohorts. No Qt, no napari."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.events import Event, Finished, Partial, Progress
from napari_lrmil.core.formatting import format_agreement, format_count, format_probability
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.plugin.session.preconditions import TISSUE_UNKNOWN

if TYPE_CHECKING:
    from napari_lrmil.core.geometry import Int64
    from napari_lrmil.core.inference.prediction import NetworkPrediction, Prediction
    from napari_lrmil.core.inference.teacher_comparison import LesionMetrics, SharedPatches
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.patching.regions import Region
    from napari_lrmil.core.results.reader import StoredResult
    from napari_lrmil.plugin.session.eta import PlannedPatches
    from napari_lrmil.plugin.session.open_slides import OpenSlides, SlideChoice
    from napari_lrmil.plugin.session.session import Session

BudgetKind = Literal["all", "top", "time"]
BUDGET_KINDS: tuple[BudgetKind, ...] = ("all", "top", "time")
NOT_MEASURED = "not measured"
HOW_TO_MEASURE = "`napari-lrmil compare` measures the cost without it."
SPEED_UNKNOWN = "The speed of the teacher on this machine is not known yet: run it once on some patches."


# ---------------------------------------------------------------- a run of the teacher


@dataclass(frozen=True)
class TeacherBudget:
    """Number of LR patches that the teacher reads, as the user chose it.

    Attributes
    ----------
    kind
        ``all`` patches, the ``top`` patches by student attention, or as many top patches as fit in a ``time``.
    top
        Number of patches for ``top``.
    seconds
        Time for ``time``.
    """

    kind: BudgetKind = "all"
    top: int = 20
    seconds: int = 30

    def teacher_patches(self, planned: PlannedPatches | None) -> TeacherPatches | None:
        """Return the patches for a run.

        Parameters
        ----------
        planned
            The patches of the region of interest; None if the tissue is not known.

        Returns
        -------
        TeacherPatches or None
            None if the number depends on a time and the speed or the tissue is not known.
        """
        if self.kind != "time":
            return TeacherPatches.ALL if self.kind == "all" else TeacherPatches(self.top)
        k = planned.max_teacher_patches(self.seconds) if planned is not None else None
        return None if k is None else TeacherPatches(k)

    def text(self, planned: PlannedPatches | None) -> str:
        """Return the number of patches and the expected time in one line, or why they are not known."""
        patches = self.teacher_patches(planned)
        if planned is None or patches is None:
            return self._missing(planned)
        estimate, n_lr = planned.estimate(patches), len(planned.hr_counts)
        k = patches.count(n_lr)
        # Without the student's attention the top patches are unknown, and their HR patches are a mean.
        about = "" if planned.attention is not None or k == n_lr else "about "
        return f"{about}{estimate.hr_patches:,} HR patches in {k:,} of {n_lr:,} · {estimate.time_text}"

    def blocked_by(self, session: Session) -> str:
        """Return why the teacher cannot run with this budget; empty if it can."""
        blocked = session.run_blocked_by or session.teacher_blocked_by
        if blocked or self.kind != "time":
            return blocked
        planned = session.planned_patches
        return "" if self.teacher_patches(planned) is not None else self._missing(planned)

    @staticmethod
    def _missing(planned: PlannedPatches | None) -> str:
        return TISSUE_UNKNOWN if planned is None else SPEED_UNKNOWN


@dataclass(frozen=True)
class LoadStoredJob:
    """Reads the stored result of a slide.

    Attributes
    ----------
    folder
        Folder of the slide's result, or its parent.
    slide
        The slide; results of another one are refused.
    bundle
        The model; results of another one are refused.
    open_slides
        The slides that are open for analysis.
    """

    folder: Path
    slide: SlideChoice
    bundle: Bundle
    open_slides: OpenSlides

    def events(self) -> Iterator[Event]:
        """Yield progress, and last `Finished` with the prediction.

        Raises
        ------
        LrmilError
            If there is no result that matches.
        """
        from napari_lrmil.core.results.reader import find_result_folder, restore_prediction

        yield Progress("opening the slide", 0, 2, "steps")
        slide = self.open_slides.get_slide(self.slide)
        yield Progress("reading the result", 1, 2, "steps")
        yield Finished(restore_prediction(find_result_folder(self.folder, slide), slide, self.bundle))


# ---------------------------------------------------------------- figures of a comparison


@dataclass(frozen=True)
class TableRow:
    """Row of the table: name of a figure, and its text for both networks."""

    name: str
    student: str
    teacher: str


@dataclass(frozen=True)
class Comparison:
    """A prediction with a teacher, as text, table and points.

    A point is an LR patch that both networks have read.
    """

    prediction: Prediction

    @cached_property
    def shared(self) -> SharedPatches:
        """Attention of both networks on the M patches that both have read."""
        from napari_lrmil.core.inference.teacher_comparison import shared_patches

        return shared_patches(self.prediction)

    @property
    def agreement(self) -> str:
        """Agreement of both attention maps in one line."""
        return format_agreement(self.prediction.agreement, len(self.prediction.grid.lr_index))

    @property
    def caution(self) -> str:
        """Why the agreement is uncertain, as a sentence; empty if it rests on enough patches."""
        agreement = self.prediction.agreement
        caution = agreement.caution if agreement is not None else ""
        return f"{caution[0].upper()}{caution[1:]}." if caution else ""

    @property
    def cost_caution(self) -> str:
        """Sentence on patches that came from the cache, so that the run shows no cost; empty without such patches."""
        networks = {"student": self.prediction.student, "teacher": self._teacher}
        cached = [
            f"{network.patches_from_cache:,} of {len(network.attention):,} patches of the {name}"
            for name, network in networks.items()
            if network.patches_from_cache
        ]
        return f"From the cache: {' and '.join(cached)}. {HOW_TO_MEASURE}" if cached else ""

    @property
    def table_rows(self) -> tuple[TableRow, ...]:
        """Probabilities and costs of both networks; a cost that the cache has spared is not stated."""
        p, teacher = self.prediction, self._teacher
        pairs = {c: (p.student.probabilities[c], teacher.probabilities[c]) for c in p.classes}
        probabilities = [
            TableRow(f"P({c})", format_probability(s), format_probability(t)) for c, (s, t) in pairs.items()
        ]
        costs = [
            TableRow("Seconds, alone", _seconds(p.student), _seconds(teacher)),
            TableRow("Pixels read", _pixels_read(p.student), _pixels_read(teacher)),
            TableRow("Patches", f"{len(p.student.attention):,}", f"{len(teacher.attention):,}"),
        ]
        return (*probabilities, *costs)

    @property
    def _teacher(self) -> NetworkPrediction:
        if self.prediction.teacher is None:
            raise ValueError("a comparison needs a prediction with a teacher")
        return self.prediction.teacher

    def rows_of(self, is_marked: NDArray[np.bool_]) -> Int64:
        """Return the rows of the prediction's grid for marked points.

        Parameters
        ----------
        is_marked
            (M,) mask of points.
        """
        return self.shared.rows[is_marked]

    def points_in(self, regions: Sequence[Region]) -> NDArray[np.bool_]:
        """Return the (M,) mask of points whose patches belong to regions."""
        from napari_lrmil.core.patching.regions import patches_in_regions

        grid = self.prediction.grid
        if not regions:
            return np.zeros(len(self.shared.rows), dtype=np.bool_)
        return patches_in_regions(grid.lr_corners[self.shared.rows], grid.lattice.lr_cell, regions)

    # ------------------------------------------------------------ under the cursor

    # Dictionaries, because the cursor asks at every move of the mouse.
    @cached_property
    def _point_by_cell(self) -> dict[tuple[int, int], int]:
        index = self.prediction.grid.lr_index[self.shared.rows]
        return {(int(c), int(r)): point for point, (c, r) in enumerate(index)}

    @cached_property
    def _hr_row_by_cell(self) -> dict[tuple[int, int], int]:
        lattice = self.prediction.grid.lattice
        index = (self._teacher.coords - np.asarray(lattice.origin)) // np.asarray(lattice.cell)
        return {(int(c), int(r)): row for row, (c, r) in enumerate(index)}

    def point_at(self, x_um: float, y_um: float) -> int | None:
        """Return the point at a position in the viewer's world (µm); None if not both networks have read there."""
        return self._point_by_cell.get(self._cell_at(x_um, y_um, self.prediction.grid.lattice.lr_cell))

    def _cell_at(self, x_um: float, y_um: float, cell_size: tuple[int, int]) -> tuple[int, int]:
        """Return column and row of the cell at a position in a lattice of cells of `cell_size` level-0 pixels."""
        lattice = self.prediction.grid.lattice
        x, y = x_um / lattice.mpp.x - lattice.origin[0], y_um / lattice.mpp.y - lattice.origin[1]
        return int(x // cell_size[0]), int(y // cell_size[1])

    def text_at(self, x_um: float, y_um: float) -> str:
        """Return the attention of both networks at a position in the viewer's world (µm), in one line."""
        point = self.point_at(x_um, y_um)
        if point is None:
            reason = "not read by the teacher" if self.prediction.partly_compared else "no patch here"
            return f"x {x_um:,.0f} µm, y {y_um:,.0f} µm · {reason}"
        student, teacher = self.shared.student[point], self.shared.teacher[point]
        hr_row = self._hr_row_by_cell.get(self._cell_at(x_um, y_um, self.prediction.grid.lattice.cell))
        hr_text = ""
        if hr_row is not None:
            relative = self._teacher.attention[hr_row] * len(self._teacher.attention)
            hr_text = f" (HR patch {relative:.2f})"
        values = f"student {student:.2f}, teacher {teacher:.2f}{hr_text}"
        return f"Times the average: {values}; {student - teacher:+.2f}"


def make_comparison(prediction: Prediction | None) -> Comparison | None:
    """Return the comparison of a prediction; None if no teacher ran."""
    return Comparison(prediction) if prediction is not None and prediction.teacher is not None else None


def _seconds(network: NetworkPrediction) -> str:
    """Return the seconds of a network, in words if some of its patches were not computed."""
    return NOT_MEASURED if network.patches_from_cache else f"{network.seconds['total']:.1f}"


def _pixels_read(network: NetworkPrediction) -> str:
    """Return the pixels that a network decoded, in words if some of its patches were not read."""
    if network.patches_from_cache:
        return NOT_MEASURED
    millions = network.pixels_decoded / 1e6
    return f"{millions:,.1f} M" if millions >= 0.05 else "under 0.1 M"


# ---------------------------------------------------------------- lesions


@dataclass(frozen=True)
class LesionScores:
    """Lesion localisation of both networks.

    Attributes
    ----------
    source
        Origin of the annotations: drawn regions, or the name of a file.
    metrics
        The figures.
    warnings
        Sentences on annotations that were left out, repaired or guessed.
    """

    source: str
    metrics: LesionMetrics
    warnings: tuple[str, ...] = ()

    @property
    def table_rows(self) -> tuple[TableRow, ...]:
        """The figures as rows of the table."""
        m = self.metrics
        return (
            TableRow("Lesion AUROC", _format_auroc(m.lesion_auroc_student), _format_auroc(m.lesion_auroc_teacher)),
            TableRow("Top patch in lesion", _yes_or_no(m.pointing_student), _yes_or_no(m.pointing_teacher)),
        )

    @property
    def text(self) -> str:
        """Origin of the annotations, number of lesion patches, and the warnings."""
        if self.metrics.n_lesion_patches == 0:
            counted = f"Lesions: {self.source}; none of the compared patches is a quarter lesion or more."
        else:
            patches = format_count(self.metrics.n_lesion_patches, "patch", "patches")
            counted = f"Lesions: {self.source}, {patches} of a quarter lesion or more."
        return " ".join((counted, *(f"{warning}." for warning in self.warnings)))


@dataclass(frozen=True)
class ScoreLesionsJob:
    """Scores attention against lesions: the drawn regions, or else the annotation file beside the slide.

    Attributes
    ----------
    prediction
        A prediction with a teacher.
    slide
        Its slide.
    open_slides
        The slides that are open for analysis.
    drawn
        The drawn regions.
    """

    prediction: Prediction
    slide: SlideChoice
    open_slides: OpenSlides
    drawn: tuple[Region, ...] = ()

    def events(self) -> Iterator[Event]:
        """Yield progress, and last `Finished` with `LesionScores`, or with None if there are no annotations.

        Raises
        ------
        LrmilError
            If the annotation file cannot be read.
        """
        from napari_lrmil.core.inference.teacher_comparison import (
            lesion_file,
            read_lesions,
            score_lesion_localisation,
        )
        from napari_lrmil.core.patching.regions import RegionFile

        yield Progress("lesions", 0, 1, "slide")
        bounds = self.open_slides.get_slide(self.slide).bounds
        lesions = RegionFile(self.drawn) if self.drawn else read_lesions(self.slide.path, bounds)
        source = "drawn regions" if self.drawn else lesion_file(self.slide.path).name
        metrics = score_lesion_localisation(self.prediction, lesions.regions) if lesions.regions else None
        yield Finished(LesionScores(source, metrics, lesions.warnings) if metrics is not None else None)


def _format_auroc(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _yes_or_no(value: bool | None) -> str:
    return "not defined" if value is None else ("yes" if value else "no")


# ---------------------------------------------------------------- a cohort


DisagreementMeasure = Literal["rho", "js"]


def attention_disagreement(result: StoredResult, measure: DisagreementMeasure) -> float | None:
    """Return 1 - ρ or the JS divergence of both attention maps of a slide; None if it is undefined."""
    if measure == "js":
        return result.js_divergence
    return None if result.spearman is None else 1 - result.spearman


def sort_by_attention_disagreement(results: Sequence[StoredResult], measure: DisagreementMeasure) -> list[StoredResult]:
    """Return results with the largest disagreement first; results without a value come last, sorted by name."""

    def sort_key(result: StoredResult) -> tuple[bool, float, str]:
        value = attention_disagreement(result, measure)
        return value is None, -(value or 0.0), result.name  # False sorts before True

    return sorted(results, key=sort_key)


@dataclass(frozen=True)
class ReadCohortJob:
    """Reads the stored results of many slides, then their pictures.

    Attributes
    ----------
    folder
        Folder with one result folder per slide.
    icon_px
        Height of the pictures.
    """

    folder: Path
    icon_px: int

    def events(self) -> Iterator[Event]:
        """Read everything.

        Yields
        ------
        Event
            Progress, `Partial` with each `StoredResult`, `Partial` with (folder, pixels) of each picture, and last
            `Finished` with all results.

        Raises
        ------
        LrmilError
            If the folder has no results.
        """
        from napari_lrmil.core.results.reader import list_result_folders, read_result_summary

        folders = list_result_folders(self.folder)
        results = []
        for done, folder in enumerate(folders):
            yield Progress("slides", done, len(folders), "slides")
            results.append(read_result_summary(folder))
            yield Partial(results[-1])
        for done, result in enumerate(results):
            yield Progress("pictures", done, len(results), "slides")
            pixels = _read_thumbnail(result.picture, self.icon_px)
            if pixels is not None:
                yield Partial((result.folder, pixels))
        yield Finished(tuple(results))


def _read_thumbnail(path: Path | None, height: int) -> NDArray[np.uint8] | None:
    """Return a picture at most `height` pixels high, (height, width, 3); None if it is missing or unreadable."""
    from PIL import Image

    if path is None:
        return None
    try:
        with Image.open(path) as picture:
            picture.thumbnail((4 * height, height))
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError):  # the table shows the row without a picture
        return None
