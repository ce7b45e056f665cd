"""How much of a slide the HR teacher reads beside its student: nothing, all, or where the student looked most."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.errors import ConfigError

NONE, ALL = "none", "all"
TOP = re.compile(r"top-([1-9][0-9]*)")


def require_choice(choice: str) -> None:
    """Raise `ConfigError` where `choice` is none of ``none``, ``all`` and ``top-K``."""
    if choice not in (NONE, ALL) and TOP.fullmatch(choice) is None:
        raise ConfigError(
            f"unknown choice --teacher {choice}; expected none, all, or top-K with a number, as in top-20"
        )


def compared_rows(choice: str, student_attention: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return (N,) which LR patches the teacher looks into, from a student's (N,) attention; ties in their order.

    K beyond the patches that there are takes all of them.
    """
    rows = np.ones(len(student_attention), dtype=np.bool_)
    top = TOP.fullmatch(choice)
    if top is not None:
        rows[np.argsort(-student_attention.astype(np.float64), kind="stable")[int(top[1]) :]] = False
    return rows
