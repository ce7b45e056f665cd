"""Rungs of a resolution ladder: students of several bundles, and the teacher that they were distilled from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

from napari_lrmil.core.errors import BundleError, ConfigError
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.card import TEACHER
from napari_lrmil.core.models.limits import SET_COVERAGE, NetworkLimits
from napari_lrmil.core.models.model_list import bundle_folders

Network = Literal["student", "teacher"]
STANDARD_MPP = (4.0, 2.0, 1.0, 0.5)  # 2.5x, 5x, 10x, 20x: the usual rungs, cheapest first


def magnification_text(mpp: float) -> str:
    """Return the magnification at which a pixel is `mpp` µm wide, as in ``2.5x``: 20x is 0.5 µm."""
    return f"{10 / mpp:.3g}x"


@dataclass(frozen=True, eq=False)  # compared by identity: a bundle has no equality
class Rung:
    """One network of one bundle.

    Attributes
    ----------
    bundle
        The model.
    network
        ``student`` or ``teacher``.
    """

    bundle: Bundle
    network: Network

    @property
    def is_teacher(self) -> bool:
        """Whether the network is the HR teacher."""
        return self.network == "teacher"

    @property
    def mpp(self) -> float:
        """µm per pixel that the network reads."""
        return self.bundle.card.hr_mpp if self.is_teacher else self.bundle.card.lr_mpp

    @property
    def magnification(self) -> str:
        """Magnification that the network reads, as in ``5x``."""
        return magnification_text(self.mpp)

    @property
    def label(self) -> str:
        """Magnification, and whether the teacher reads it."""
        return f"{self.magnification} teacher" if self.is_teacher else self.magnification

    @property
    def input_px(self) -> int:
        """Side in pixels of the patches that the encoder gets."""
        card = self.bundle.card
        return card.hr_patch_px if self.is_teacher else card.student_input_px or card.lr_patch_px

    @property
    def temperature(self) -> float | None:
        """Calibration temperature of the network; None if it is not calibrated."""
        card = self.bundle.card
        return card.teacher_temperature if self.is_teacher else card.temperature

    @property
    def limits(self) -> NetworkLimits | None:
        """Operating point and conformal scores of the network; None if the bundle has none, or has them of patients."""
        limits = self.bundle.limits
        if limits is None or limits.level == "patient":  # a ladder answers for slides
            return None
        return limits.teacher if self.is_teacher else limits.student

    @property
    def why_no_sets(self) -> str:
        """Reason why the network has no sets of classes; empty if it has."""
        limits = self.limits
        if limits is None:
            is_of_patients = self.bundle.limits is not None and self.bundle.limits.level == "patient"
            return "its limits are of patients, not of slides" if is_of_patients else "the bundle has no limits"
        return limits.no_conformal if limits.conformal is not None else limits.no_conformal or "no conformal scores"


@dataclass(frozen=True)
class Ladder:
    """Rungs of a ladder that fit together, the cheapest first.

    Attributes
    ----------
    rungs
        At least two, in the order of climbing.
    notices
        Sentences on what could not be checked.
    """

    rungs: tuple[Rung, ...]
    notices: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes of all models."""
        return self.rungs[0].bundle.card.classes

    @property
    def bundles(self) -> tuple[Bundle, ...]:
        """The models, that of the coarsest student first."""
        return tuple(rung.bundle for rung in self.rungs if not rung.is_teacher)

    @cached_property
    def sha256(self) -> str:
        """Hash of the models, their order and their limits, on which the results depend."""
        limits = [r.limits.model_dump(mode="json") if r.limits is not None else None for r in self.rungs]
        content = [[r.bundle.sha256, r.network] for r in self.rungs], limits
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def missing_text(self) -> dict[str, str]:
        """Magnification of the usual rungs -> reason why this ladder has none of it."""
        present = {rung.magnification for rung in self.rungs}
        teachers = {magnification_text(b.card.hr_mpp) for b in self.bundles if b.has_teacher}
        reasons = {}
        for magnification in map(magnification_text, STANDARD_MPP):
            if magnification not in present:
                reasons[magnification] = (
                    "not run: --teacher all adds the teacher"
                    if magnification in teachers
                    else ("no model of this resolution was given")
                )
        return reasons

    def require_sets(self) -> None:
        """Raise `ConfigError` if a rung from which a cascade climbs has no sets of classes, by which it decides."""
        for rung in self.rungs[:-1]:
            if reason := rung.why_no_sets:
                raise ConfigError(
                    f"{rung.bundle.path} ({rung.label}): a cascade climbs where the set at {100 * SET_COVERAGE:g} % "
                    f"holds more than one class, and this model has no sets ({reason}); train it with "
                    "split.calibration, or use --ladder"
                )


def open_ladder(names: Sequence[str | Path], *, teacher: bool | None) -> Ladder:
    """Open the bundles of a ladder and check that they belong together.

    Parameters
    ----------
    names
        Folders of bundles, names of shipped ones, or folders that hold several bundles or training runs.
    teacher
        Whether the HR teacher is the finest rung. None: if one of the bundles contains its weights.

    Raises
    ------
    BundleError
        If a bundle is broken, or they differ in classes or teacher, or none has the teacher.
    ConfigError
        If fewer than two rungs are left, or two students have the same resolution.
    """
    opened = {(bundle := Bundle(path)).sha256: bundle for name in names for path in _bundle_folders(name)}
    bundles = sorted(opened.values(), key=lambda bundle: -bundle.card.lr_mpp)
    _require_equal_classes(bundles)
    notices = _require_equal_teachers(bundles)
    rungs = [Rung(bundle, "student") for bundle in bundles]
    _require_distinct_resolutions(rungs)
    if teacher is None:
        teacher = any(bundle.has_teacher and not bundle.names_teacher for bundle in bundles)
    if teacher:
        rungs.append(Rung(_bundle_with_teacher(bundles), "teacher"))
    if len(rungs) < 2:
        raise ConfigError(
            f"{bundles[0].path}: one model at {rungs[0].label} is no ladder; give the students of other resolutions "
            "with further --bundle, or add the teacher with --teacher all"
        )
    for rung in rungs:
        _ = rung.limits  # damaged ones would fail every slide
    return Ladder(tuple(rungs), notices)


def _bundle_folders(name: str | Path) -> list[str | Path]:
    """Return the bundle of a name, or the bundles in a folder of bundles or of training runs."""
    folder = Path(name)
    return [*bundle_folders(folder)] or [name] if folder.is_dir() else [name]


def _require_equal_classes(bundles: Sequence[Bundle]) -> None:
    first = bundles[0]
    for other in bundles[1:]:
        if other.card.classes != first.card.classes:
            raise BundleError(
                other.path,
                "classes",
                f"the model tells {', '.join(other.card.classes)} apart, and {first.path} tells "
                f"{', '.join(first.card.classes)} apart; a ladder needs the same classes in the same order",
            )


def _require_equal_teachers(bundles: Sequence[Bundle]) -> tuple[str, ...]:
    """Return a notice for each bundle that does not say which teacher it had; raise if two teachers are known."""
    first = next((bundle for bundle in bundles if _teacher_text(bundle)), bundles[0])
    notices = []
    for other in bundles:
        if other.card.distilled != first.card.distilled:
            learned = "was distilled from a teacher" if other.card.distilled else "learned from labels alone"
            raise BundleError(
                other.path, "distilled", f"the student {learned}, unlike that of {first.path}; they make no ladder"
            )
        if _teacher_text(other) and _teacher_text(other) != _teacher_text(first):
            raise BundleError(
                other.path,
                TEACHER,
                f"the student had another teacher than that of {first.path}; a ladder needs students of one teacher, "
                "so train them on the same cohort with the same settings but lr_mpp",
            )
        if other.card.distilled and not _teacher_text(other) and len(bundles) > 1:
            notices.append(f"{other.path}: the bundle leaves its teacher out, so it may be another one")
    return tuple(notices)


def _teacher_text(bundle: Bundle) -> str:
    """Return what identifies the teacher of a bundle; empty if the bundle leaves it out."""
    card = bundle.card
    if card.teacher is None:
        return ""
    return f"{card.hashes[TEACHER]} {card.teacher.encoder_sha256} {card.hr_mpp:g} {card.hr_patch_px}"


def _require_distinct_resolutions(rungs: Sequence[Rung]) -> None:
    for coarse, fine in pairwise(rungs):
        if math.isclose(coarse.mpp, fine.mpp, rel_tol=1e-6):
            raise ConfigError(
                f"{coarse.bundle.path} and {fine.bundle.path} both read {fine.magnification}; a ladder has one model "
                "at each resolution"
            )


def _bundle_with_teacher(bundles: Sequence[Bundle]) -> Bundle:
    """Return the bundle of the finest student that has its teacher."""
    finest_first = bundles[::-1]
    bundle = next((bundle for bundle in finest_first if bundle.has_teacher), finest_first[0])
    bundle.require_teacher()  # says what is missing
    return bundle
