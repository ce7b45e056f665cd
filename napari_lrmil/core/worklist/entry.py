"""Entry of a worklist: a slide with its stored answer, its verdict, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Self

from napari_lrmil.core.formatting import ABOUT_MODEL, describe_conflict, format_probability
from napari_lrmil.core.results.schema import PredictionFile
from napari_lrmil.core.slides.slide_names import slide_name
from napari_lrmil.core.text_escapes import printable
from napari_lrmil.core.worklist.review import ReviewRow

HASH_DIGITS = 8  # of a model's hash in a sentence; enough to tell two versions of one name apart


class Status(Enum):
    """State of a slide in a worklist. The values are the words that are shown."""

    NEW = "new"
    DONE = "done"
    FAILED = "failed"
    REVIEWED = "reviewed"


@dataclass(frozen=True)
class ListedSlide:
    """A slide that a worklist is made of, before its results are read.

    Attributes
    ----------
    path
        Slide file, or folder of a DICOM slide.
    patient
        Patient of the cohort table; empty if none is known.
    mpp
        µm per level-0 pixel, if the table states it.
    path_in_cohort
        Path that is written into results, see `napari_lrmil.core.slides.slide_files.path_in_cohort`.
    notes
        Sentences of the table's reading about this slide.
    problem
        Reason why the slide cannot be used; empty if it can.
    """

    path: Path
    patient: str = ""
    mpp: float | None = None
    path_in_cohort: str = ""
    notes: tuple[str, ...] = ()
    problem: str = ""

    @property
    def name(self) -> str:
        """Name of the slide's results, see `slide_name`."""
        return slide_name(self.path)


@dataclass(frozen=True)
class StoredAnswer:
    """Answer of a model for a whole slide, as ``prediction.json`` states it.

    Attributes
    ----------
    predicted, probability
        The most probable class, and its probability.
    classes
        All classes in the model's order.
    calibrated
        Whether the probability is calibrated.
    prediction_set, coverage
        Set of classes and the share of slides for which it holds the true one; empty and None if the model has none.
    side
        Side of the operating point in words, and whether it differs from `predicted`; empty if the model has none.
    warnings
        Sentences on why the answer may be wrong.
    bundle, bundle_sha256
        Name and hash of the model.
    scope
        Part of the slide in words, see `napari_lrmil.core.patching.roi.RegionOfInterest.text`.
    """

    predicted: str
    probability: float
    classes: tuple[str, ...]
    calibrated: bool = False
    prediction_set: tuple[str, ...] = ()
    coverage: float | None = None
    side: str = ""
    warnings: tuple[str, ...] = ()
    bundle: str = ""
    bundle_sha256: str = ""
    scope: str = ""

    @classmethod
    def of(cls, file: PredictionFile) -> Self:
        """Return the answer in a ``prediction.json``."""
        point, classes = file.operating_point, file.prediction_set
        side = ""
        if point:
            side = f"{'at or above' if point.reached else 'below'} the operating point of {point.positive}"
            conflict = describe_conflict(point.positive, point.reached, file.predicted)
            side = "; ".join(filter(None, (side, conflict)))
        return cls(
            file.predicted,
            file.probabilities[file.predicted],
            file.classes,
            file.calibrated,
            classes.classes if classes else (),
            classes.coverage if classes else None,
            side,
            file.warnings,
            file.bundle,
            file.bundle_sha256,
            file.scope or "",
        )

    @property
    def slide_warnings(self) -> tuple[str, ...]:
        """Warnings about this slide, without what the model says of itself on every slide."""
        return tuple(text for text in self.warnings if not text.startswith(ABOUT_MODEL))

    @property
    def model_notices(self) -> tuple[str, ...]:
        """What the model says of itself on every slide."""
        return tuple(text for text in self.warnings if text.startswith(ABOUT_MODEL))

    @property
    def text(self) -> str:
        """Class and probability in a few words."""
        return f"{printable(self.predicted)} {format_probability(self.probability)}"

    @property
    def set_text(self) -> str:
        """Set of classes with its coverage; empty if the model has none."""
        if self.coverage is None:
            return ""
        names = " or ".join(map(printable, self.prediction_set)) or "no class"
        return f"{names} ({self.coverage:.0%})"

    @property
    def model_text(self) -> str:
        """Name of the model with the first digits of its hash."""
        return f"{printable(self.bundle)} ({self.bundle_sha256[:HASH_DIGITS]})"


@dataclass(frozen=True)
class WorklistEntry:
    """A row of a worklist.

    Attributes
    ----------
    slide
        The slide.
    answer
        Stored answer; None without one.
    review
        Verdict of the present reviewer; None without one.
    problem
        Reason why the slide has no answer, or cannot be opened; empty if nothing is wrong.
    notes
        Further sentences, such as that the answer is of another model.
    """

    slide: ListedSlide
    answer: StoredAnswer | None = None
    review: ReviewRow | None = None
    problem: str = ""
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the slide's results."""
        return self.slide.name

    @property
    def path(self) -> Path:
        """Slide file."""
        return self.slide.path

    @property
    def patient(self) -> str:
        """Patient; empty if none is known."""
        return self.slide.patient

    @property
    def status(self) -> Status:
        """State of the slide. A verdict counts also for a slide that failed."""
        if self.review is not None:
            return Status.REVIEWED
        if self.problem:
            return Status.FAILED
        return Status.NEW if self.answer is None else Status.DONE

    @property
    def reason(self) -> str:
        """Problem and notes in one line; empty if there are none."""
        return "; ".join(filter(None, (self.problem, *self.notes)))
