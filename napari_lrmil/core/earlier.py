"""Whether an earlier call left the very result that is asked for now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_lrmil.core.errors import StoredError
from napari_lrmil.core.scope import WHOLE
from napari_lrmil.core.slide import Slide
from napari_lrmil.core.slidereport import REPORT
from napari_lrmil.core.stored import MPP_DIFFERS, read_told
from napari_lrmil.core.teacherchoice import ALL, NONE, TOP


@dataclass(frozen=True)
class Wanted:
    """What a result has to be about.

    Attributes
    ----------
    bundle_sha256
        The model.
    teacher
        ``none``, ``all`` or ``top-K``.
    report
        Whether ``report.html`` has to be there too.
    also
        Further entries of ``prediction.json`` that have to be so.
    """

    bundle_sha256: str
    teacher: str = NONE
    report: bool = False
    also: Mapping[str, Any] = field(default_factory=dict)


def earlier_result(folder: Path, slide: Slide, wanted: Wanted) -> dict[str, Any] | None:
    """Return the ``prediction.json`` of a slide's `folder` where it answers what is asked; None where it does not.

    The slide (by its pixels' fingerprint and its resolution), the model, the scope and the teacher have to be the same.
    A result with a teacher answers for the student alone too: to make it again would take the teacher's away.
    """
    if not (folder / "prediction.json").is_file():
        return None
    try:
        told = read_told(folder)
        mpp = float(told["mpp"])
        same = (
            told["slide_fingerprint"] == slide.fingerprint
            and told["bundle_sha256"] == wanted.bundle_sha256
            and told["scope"] == WHOLE.text
            and slide.has_mpp
            and abs(mpp / slide.mpp.mean - 1) <= MPP_DIFFERS
            and _teacher_as_wanted(told, wanted.teacher)
            and all(told.get(key) == value for key, value in wanted.also.items())
        )
    except (StoredError, KeyError, TypeError, ValueError):  # broken, or of a version that told less
        return None
    whole = (folder / "attention.h5").is_file() and ((folder / REPORT).is_file() or not wanted.report)
    return told if same and whole else None


def _teacher_as_wanted(told: Mapping[str, Any], choice: str) -> bool:
    if choice == NONE:
        return True
    if "teacher" not in told:
        return False
    looked, there = int(told["teacher"]["n_lr_patches"]), int(told["n_patches"])
    top = TOP.fullmatch(choice)
    return looked == (there if choice == ALL or top is None else min(int(top[1]), there))
