"""Limits of a model that its bundle carries, ``limits.json``: operating point and conformal scores of each network.

They lie beside the card and not in it: they change what is said of a probability, never the probability, and a program
that does not know them can use the bundle all the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from napari_lrmil.core.models.bundle_part import read_part

LIMITS = "limits.json"
SET_COVERAGE = 0.9  # of the sets that a prediction states
FEWEST_OF_A_CLASS = 5  # validation slides (or patients) below which an operating point is called uncertain
NO_CALIBRATION_SPLIT = "the run set no calibration slides aside (split.calibration)"
Share = Annotated[float, Field(ge=0, le=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class OperatingPoint(_Frozen):
    """Probability from which on a slide counts as positive, chosen on validation slides.

    Attributes
    ----------
    positive
        Name of the positive class.
    threshold
        A slide is positive if its probability of that class is at least this.
    rule
        Rule of the choice, as text.
    sensitivity, specificity
        On the validation slides that chose it, so they are too good.
    positives, negatives
        Validation slides of each class.
    """

    positive: str
    threshold: Share
    rule: str
    sensitivity: Share
    specificity: Share
    positives: int = Field(ge=1)
    negatives: int = Field(ge=1)

    @property
    def why_uncertain(self) -> str:
        """Reason to distrust the threshold, empty if there is none: few choosers, or a class that it always misses."""
        if min(self.positives, self.negatives) < FEWEST_OF_A_CLASS:
            return f"only {self.positives} {self.positive} and {self.negatives} other in validation chose it"
        missed = "sensitivity" if not self.sensitivity else "specificity" if not self.specificity else ""
        return f"its {missed} was 0 in validation" if missed else ""


class ConformalScores(_Frozen):
    """Scores of the true classes of the calibration slides, see `aps_scores`.

    Attributes
    ----------
    scores
        (n,) ascending.
    patients
        (n,) number of each slide's patient; patients that share a slide count as one.
    """

    scores: tuple[Share, ...] = Field(min_length=1)
    patients: tuple[int, ...]

    @model_validator(mode="after")
    def _require_a_patient_each(self) -> ConformalScores:
        if len(self.scores) != len(self.patients):
            raise ValueError(f"{len(self.scores)} scores of {len(self.patients)} patients; expected as many")
        return self

    @property
    def n_patients(self) -> int:
        """Number of patients."""
        return len(set(self.patients))


class NetworkLimits(_Frozen):
    """Limits of one network; what is absent has a reason.

    Attributes
    ----------
    operating_point, no_operating_point
        The operating point, or why there is none.
    conformal, no_conformal
        The scores, and why they give no set at `SET_COVERAGE`; empty if they do.
    """

    operating_point: OperatingPoint | None = None
    no_operating_point: str = ""
    conformal: ConformalScores | None = None
    no_conformal: str = ""


class ModelLimits(_Frozen):
    """Content of ``limits.json``.

    Attributes
    ----------
    schema_version
        Version of the file.
    bundle_sha256
        Hash of the model that was measured.
    student, teacher
        Limits of each network; no teacher if the bundle has none.
    level
        What an answer is about: a slide, or all slides of a patient if those were one bag in training.
    """

    schema_version: Literal[1] = 1
    bundle_sha256: str = ""
    level: Literal["slide", "patient"] = "slide"
    student: NetworkLimits
    teacher: NetworkLimits | None = None


def limits_values(limits: ModelLimits) -> dict[str, Any]:
    """Return the content of ``limits.json``. Limits of slides have no ``level``, as before there was one."""
    values = limits.model_dump(mode="json")
    return values if limits.level == "patient" else {k: v for k, v in values.items() if k != "level"}


def read_limits(folder: Path, bundle_sha256: str, classes: tuple[str, ...]) -> ModelLimits | None:
    """Return the limits of the bundle in `folder`; None if it is of a version that did not measure any.

    Raises
    ------
    BundleError
        If the file is damaged, or of another model.
    """

    def read(file: Path) -> tuple[ModelLimits, bool]:
        limits = ModelLimits.model_validate(json.loads(file.read_text(encoding="utf-8")))
        points = [n.operating_point for n in (limits.student, limits.teacher) if n is not None and n.operating_point]
        is_of_model = limits.bundle_sha256 == bundle_sha256 and all(point.positive in classes for point in points)
        return limits, is_of_model

    return read_part(folder, LIMITS, read)


def limits_lines(limits: ModelLimits) -> list[str]:
    """Return the lines of the model card in Markdown."""
    lines = ["## Limits", ""]
    networks = {"Student": limits.student} | ({"Teacher": limits.teacher} if limits.teacher is not None else {})
    for name, network in networks.items():
        point, sets = _point_text(network, limits.level), _sets_text(network, limits.level)
        lines += [f"- {name}, operating point: {point}", f"- {name}, sets: {sets}"]
    return [*lines, ""]


def _point_text(network: NetworkLimits, level: str) -> str:
    point = network.operating_point
    if point is None:
        return f"none, {network.no_operating_point}"
    return (
        f"probability of {point.positive} {point.threshold:.4f} or above, by {point.rule}; on the validation {level}s "
        f"that chose it sensitivity {point.sensitivity:.3f} ({point.positives} {level}s), specificity "
        f"{point.specificity:.3f} ({point.negatives} {level}s), which is too good for new {level}s"
    )


def _sets_text(network: NetworkLimits, level: str) -> str:
    if network.conformal is None:
        return f"none, {network.no_conformal}"
    too_few = f"; {network.no_conformal}" if network.no_conformal else ""
    count = len(network.conformal.scores)
    bags = f"{count} slides of {network.conformal.n_patients} patients" if level == "slide" else f"{count} patients"
    return f"conformal, from {bags} that neither selection nor calibration has seen{too_few}"
