"""What there is to read in a comparison of student and teacher, and what getting one costs. No Qt, no napari."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.events import Event, Finished, Partial, Progress
from napari_lrmil.core.formatting import format_agreement, format_probability
from napari_lrmil.core.inference.teacher_patches import TeacherPatches

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
TISSUE_UNKNOWN = "The tissue of the slide is not known yet."
SPEED_UNKNOWN = "How fast the teacher is here is not known yet: run it once on some patches."


# ---------------------------------------------------------------- getting the teacher's attention


@dataclass(frozen=True)
class TeacherBudget:
    """How much of the slide the teacher is to look into.

    Attributes
    ----------
    how
        Every patch; the `top` patches to which the student gives most attention; or as many of those as fit in a time.
    top
        How many patches.
    seconds
        How much time.
    """

    how: BudgetKind = "all"
    top: int = 20
    seconds: int = 30

    def choice(self, asked: PlannedPatches | None) -> TeacherPatches | None:
        """Return the wish as `predict` takes it; None where it is not known what it comes to."""
        if self.how != "time":
            return TeacherPatches.ALL if self.how == "all" else TeacherPatches(self.top)
        k = asked.max_teacher_patches(self.seconds) if asked is not None else None
        return None if k is None else TeacherPatches(k)

    def text(self, asked: PlannedPatches | None) -> str:
        """Return what this would read and take, or why that is not known."""
        choice = self.choice(asked)
        if asked is None or choice is None:
            return TISSUE_UNKNOWN if asked is None else SPEED_UNKNOWN
        cost, patches = asked.estimate(choice), len(asked.hr_counts)
        k = choice.count(patches)
        about = "" if asked.attention is not None or k == patches else "about "
        return f"{about}{cost.hr_patches:,} HR patches in {k:,} of {patches:,} · {cost.time_text}"


def why_comparison_blocked(session: Session, wish: TeacherBudget) -> str:
    """Return why the teacher cannot be asked; empty where it can."""
    blocked = session.run_blocked_by or session.teacher_blocked_by
    if blocked or wish.how != "time":
        return blocked
    asked = session.planned_patches
    return "" if wish.choice(asked) is not None else (TISSUE_UNKNOWN if asked is None else SPEED_UNKNOWN)


@dataclass(frozen=True)
class LoadStoredJob:
    """Read back what a run stored about a slide."""

    folder: Path
    slide: SlideChoice
    bundle: Bundle
    shelf: OpenSlides

    def events(self) -> Iterator[Event]:
        """Yield how far it is, and last the prediction."""
        from napari_lrmil.core.results.reader import find_result_folder, restore_prediction

        yield Progress("opening the slide", 0, 2, "steps")
        slide = self.shelf.get_slide(self.slide)
        yield Progress("reading what was stored", 1, 2, "steps")
        yield Finished(restore_prediction(find_result_folder(self.folder, slide), slide, self.bundle))


# ---------------------------------------------------------------- reading a comparison


@dataclass(frozen=True)
class TableRow:
    """A line of the table: what it is, and what holds for student and teacher."""

    name: str
    student: str
    teacher: str


@dataclass(frozen=True)
class Comparison:
    """A prediction with a teacher in it, as people read it."""

    prediction: Prediction

    @cached_property
    def both(self) -> SharedPatches:
        """What both networks give to the patches that both looked into."""
        from napari_lrmil.core.inference.teacher_comparison import shared_patches

        return shared_patches(self.prediction)

    @property
    def agreement(self) -> str:
        """How far they look at the same places, in a line."""
        return format_agreement(self.prediction.agreement, len(self.prediction.grid.lr_index))

    @property
    def figures(self) -> tuple[TableRow, ...]:
        """What each network says, and what it costs."""
        p, teacher = self.prediction, self._teacher
        pairs = {c: (p.student.probabilities[c], teacher.probabilities[c]) for c in p.classes}
        said = [TableRow(f"P({c})", format_probability(s), format_probability(t)) for c, (s, t) in pairs.items()]
        costs = [
            TableRow("Seconds, alone", f"{p.student.seconds['total']:.1f}", f"{teacher.seconds['total']:.1f}"),
            TableRow("Pixels read", _millions(p.student.pixels_decoded), _millions(teacher.pixels_decoded)),
            TableRow("Patches", f"{len(p.student.attention):,}", f"{len(teacher.attention):,}"),
        ]
        return (*said, *costs)

    @property
    def _teacher(self) -> NetworkPrediction:
        if self.prediction.teacher is None:
            raise ValueError("no comparison without a teacher's reading")
        return self.prediction.teacher

    def rows(self, points: NDArray[np.bool_]) -> Int64:
        """Return the rows of the prediction's grid that (M,) marked points stand for."""
        return self.both.rows[points]

    def points_in(self, regions: Sequence[Region]) -> NDArray[np.bool_]:
        """Return (M,) which points stand for patches that belong to regions."""
        from napari_lrmil.core.patching.regions import patches_in_regions

        grid = self.prediction.grid
        if not regions:
            return np.zeros(len(self.both.rows), dtype=np.bool_)
        return patches_in_regions(grid.lr_corners[self.both.rows], grid.lattice.lr_cell, regions)

    # ------------------------------------------------------------ under the cursor

    @cached_property
    def _lr_rows(self) -> dict[tuple[int, int], int]:
        index = self.prediction.grid.lr_index[self.both.rows]
        return {(int(c), int(r)): point for point, (c, r) in enumerate(index)}

    @cached_property
    def _hr_rows(self) -> dict[tuple[int, int], int]:
        lattice = self.prediction.grid.lattice
        index = (self._teacher.coords - np.asarray(lattice.origin)) // np.asarray(lattice.cell)
        return {(int(c), int(r)): row for row, (c, r) in enumerate(index)}

    def point_at(self, x_um: float, y_um: float) -> int | None:
        """Return the point of the patch at a place in the viewer's world; None where the two did not both look."""
        return self._lr_rows.get(self._cell(x_um, y_um, self.prediction.grid.lattice.lr_cell))

    def _cell(self, x_um: float, y_um: float, cell: tuple[int, int]) -> tuple[int, int]:
        lattice = self.prediction.grid.lattice
        x, y = x_um / lattice.mpp.x - lattice.origin[0], y_um / lattice.mpp.y - lattice.origin[1]
        return int(x // cell[0]), int(y // cell[1])

    def text_at(self, x_um: float, y_um: float) -> str:
        """Return both networks' attention at a place, in a line."""
        point = self.point_at(x_um, y_um)
        if point is None:
            some = "the teacher did not look here" if self.prediction.partly_compared else "no patch here"
            return f"x {x_um:,.0f} µm, y {y_um:,.0f} µm · {some}"
        student, teacher = self.both.student[point], self.both.teacher[point]
        fine = self._hr_rows.get(self._cell(x_um, y_um, self.prediction.grid.lattice.cell))
        here = "" if fine is None else f" (HR patch {self._teacher.attention[fine] * len(self._teacher.attention):.2f})"
        return f"Times the average: student {student:.2f}, teacher {teacher:.2f}{here}; {student - teacher:+.2f}"


def make_comparison(prediction: Prediction | None) -> Comparison | None:
    """Return what there is to compare; None where no teacher ran."""
    return Comparison(prediction) if prediction is not None and prediction.teacher is not None else None


def _millions(pixels: int) -> str:
    return f"{pixels / 1e6:,.1f} M"


# ---------------------------------------------------------------- lesions


@dataclass(frozen=True)
class LesionScores:
    """Who finds annotated lesions, and where the annotations came from."""

    source: str
    figures: LesionMetrics

    @property
    def lines(self) -> tuple[TableRow, ...]:
        """The same as lines of the table."""
        f = self.figures
        return (
            TableRow("Lesion AUROC", _share(f.lesion_auroc_student), _share(f.lesion_auroc_teacher)),
            TableRow("Top patch in lesion", _yes(f.pointing_student), _yes(f.pointing_teacher)),
        )

    @property
    def text(self) -> str:
        """What was annotated."""
        if self.figures.n_lesion_patches == 0:
            return f"Lesions: {self.source}; none of the compared patches is a quarter lesion or more."
        return f"Lesions: {self.source}, {self.figures.n_lesion_patches} patches of a quarter lesion or more."


@dataclass(frozen=True)
class ScoreLesionsJob:
    """Measure attention against lesions: those that are drawn, else those in the file beside the slide."""

    prediction: Prediction
    slide: SlideChoice
    shelf: OpenSlides
    drawn: tuple[Region, ...] = ()

    def events(self) -> Iterator[Event]:
        """Yield last `LesionScores`, or None where there are none."""
        from napari_lrmil.core.inference.teacher_comparison import (
            find_lesion_outlines,
            lesion_file,
            score_lesion_localisation,
        )

        yield Progress("lesions", 0, 1, "slide")
        known = self.drawn or find_lesion_outlines(self.slide.path, self.shelf.get_slide(self.slide).bounds)
        source = "drawn regions" if self.drawn else lesion_file(self.slide.path).name
        yield Finished(LesionScores(source, score_lesion_localisation(self.prediction, known)) if known else None)


def _share(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _yes(value: bool | None) -> str:
    return "not defined" if value is None else ("yes" if value else "no")


# ---------------------------------------------------------------- a cohort


DisagreementMeasure = Literal["rho", "js"]


def attention_disagreement(line: StoredResult, measure: DisagreementMeasure) -> float | None:
    """Return 1 - ρ or the JS divergence of both attention maps of a slide; None where it is undefined."""
    if measure == "js":
        return line.js_divergence
    return None if line.spearman is None else 1 - line.spearman


def sort_by_attention_disagreement(lines: Sequence[StoredResult], measure: DisagreementMeasure) -> list[StoredResult]:
    """Return the slides whose attention maps differ most first; those without a figure come last, by name."""
    figures = {id(line): attention_disagreement(line, measure) for line in lines}
    with_one = [line for line in lines if figures[id(line)] is not None]
    without = sorted((line for line in lines if figures[id(line)] is None), key=lambda line: line.name)
    return sorted(with_one, key=lambda line: (-(figures[id(line)] or 0.0), line.name)) + without


@dataclass(frozen=True)
class ReadCohortJob:
    """Read the results of many slides, and then their pictures."""

    folder: Path
    icon_px: int

    def events(self) -> Iterator[Event]:
        """Yield `Partial` with each `StoredResult`, then with (folder, pixels) of each picture; last the lines."""
        from napari_lrmil.core.results.reader import list_result_folders, read_result_summary

        folders = list_result_folders(self.folder)
        lines = []
        for done, folder in enumerate(folders):
            yield Progress("slides", done, len(folders), "slides")
            lines.append(read_result_summary(folder))
            yield Partial(lines[-1])
        for done, line in enumerate(lines):
            yield Progress("pictures", done, len(lines), "slides")
            pixels = _thumbnail(line.picture, self.icon_px)
            if pixels is not None:
                yield Partial((line.folder, pixels))
        yield Finished(tuple(lines))


def _thumbnail(path: Path | None, side: int) -> NDArray[np.uint8] | None:
    """Return a picture at most `side` pixels high, (height, width, 3); None where there is none that can be read."""
    from PIL import Image

    if path is None:
        return None
    try:
        with Image.open(path) as picture:
            picture.thumbnail((4 * side, side))
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError):
        return None
