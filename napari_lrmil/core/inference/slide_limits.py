"""Side of the operating point and set of classes of one slide, from its probabilities and the limits of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from napari_lrmil.core.formatting import describe_conflict
from napari_lrmil.core.metrics.conformal import conformal_threshold, prediction_sets
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.limits import NO_CALIBRATION_SPLIT, SET_COVERAGE, NetworkLimits

NO_SLIDES_FOR_SETS = "when the model was trained, no slides were set aside to measure one"


@dataclass(frozen=True)
class OperatingSide:
    """Side of the operating point on which a slide lies.

    Attributes
    ----------
    positive
        Name of the positive class.
    threshold
        Probability of that class from which on a slide is positive.
    reached
        Whether the slide is positive.
    """

    positive: str
    threshold: float
    reached: bool

    @property
    def text(self) -> str:
        """The side in words."""
        side = "at or above" if self.reached else "below"
        return f"{side} the operating point of {self.positive}, {self.threshold:.3f}"


@dataclass(frozen=True)
class PredictionSet:
    """Set of classes that holds the true one with a stated probability.

    Attributes
    ----------
    coverage
        That probability, over slides of new patients of the population of the calibration slides.
    classes
        The classes in the set, in the model's order.
    """

    coverage: float
    classes: tuple[str, ...]

    @property
    def text(self) -> str:
        """The set in words."""
        return f"set at {100 * self.coverage:g} %: {' or '.join(self.classes)}"


@dataclass(frozen=True)
class SlideLimits:
    """Side and set of one slide; None where the model has no such limit, or the prediction is of a part of a slide.

    Attributes
    ----------
    side, classes
        The limits.
    by_patient
        Whether the model states them of all slides of a patient together, and of one slide neither.
    cautions
        Why a limit is absent or uncertain, in words.
    predicted
        The most probable class, which need not be the one that the operating point says; empty without a limit.
    """

    side: OperatingSide | None = None
    classes: PredictionSet | None = None
    by_patient: bool = False
    cautions: tuple[str, ...] = ()
    predicted: str = ""

    @property
    def conflict(self) -> str:
        """Sentence if the operating point says another class than the highest probability; else empty."""
        if self.side is None or not self.predicted:
            return ""
        return describe_conflict(self.side.positive, self.side.reached, self.predicted)

    @property
    def texts(self) -> tuple[str, ...]:
        """The limits that exist, whether class and operating point differ, and the cautions, in words."""
        side = "" if self.side is None else self.side.text
        classes = "" if self.classes is None else self.classes.text
        return (*filter(None, (side, self.conflict, classes)), *self.cautions)


NO_LIMITS = SlideLimits()


def slide_limits(bundle: Bundle, probabilities: Mapping[str, float], *, is_whole_slide: bool = True) -> SlideLimits:
    """Return the limits of a student's prediction. Of a part of a slide there are none: they hold for whole slides.

    They hold for patients, and not for one slide, if all slides of a patient were one bag in training.

    Raises
    ------
    BundleError
        If the limits of the bundle are damaged.
    """
    limits = bundle.limits if is_whole_slide else None
    if limits is None:
        return NO_LIMITS
    if limits.level == "patient":
        return SlideLimits(by_patient=True)
    classes = bundle.card.classes
    return network_limits(limits.student, classes, probabilities)


def network_limits(limits: NetworkLimits, classes: Sequence[str], probabilities: Mapping[str, float]) -> SlideLimits:
    """Return the side and the set of calibrated probabilities of a slide, or of a patient if they are of those."""
    sets = prediction_set(limits, classes, probabilities)
    cautions = tuple(_cautions(limits, classes, sets))
    predicted = max(probabilities, key=lambda name: probabilities[name])
    return SlideLimits(_side(limits, probabilities), sets, cautions=cautions, predicted=predicted)


def _cautions(limits: NetworkLimits, classes: Sequence[str], sets: PredictionSet | None) -> Iterator[str]:
    """Yield why a limit is absent or uncertain; of more than two classes no operating point is expected."""
    point = limits.operating_point
    if point is not None and point.why_uncertain:
        yield f"the operating point is uncertain: {point.why_uncertain}"
    elif point is None and len(classes) == 2 and limits.no_operating_point:
        yield f"no operating point: {limits.no_operating_point}"
    if sets is None and limits.no_conformal:
        is_unsplit = limits.no_conformal == NO_CALIBRATION_SPLIT  # which names a setting of the training
        yield f"no set at {100 * SET_COVERAGE:g} %: {NO_SLIDES_FOR_SETS if is_unsplit else limits.no_conformal}"


def _side(limits: NetworkLimits, probabilities: Mapping[str, float]) -> OperatingSide | None:
    point = limits.operating_point
    if point is None:
        return None
    return OperatingSide(point.positive, point.threshold, probabilities[point.positive] >= point.threshold)


def prediction_set(
    limits: NetworkLimits, classes: Sequence[str], probabilities: Mapping[str, float], coverage: float = SET_COVERAGE
) -> PredictionSet | None:
    """Return the set of a slide at a coverage; None if the model has no scores, or too few for it.

    Parameters
    ----------
    limits
        Limits of the network.
    classes, probabilities
        Classes in the model's order; class -> calibrated probability of a whole slide.
    coverage
        Probability that the set holds the true class, between 0 and 1.
    """
    conformal = limits.conformal
    if conformal is None:
        return None
    threshold = conformal_threshold(conformal.scores, conformal.patients, coverage)
    if threshold is None:
        return None
    (is_in_set,) = prediction_sets(np.array([[probabilities[c] for c in classes]], np.float64), threshold)
    return PredictionSet(coverage, tuple(c for c, inside in zip(classes, is_in_set, strict=True) if inside))
