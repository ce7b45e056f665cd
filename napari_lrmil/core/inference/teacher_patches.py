"""LR patches that the HR teacher reads: none, all, or those with most student attention."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from napari_lrmil.core.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# No leading zero, so that each value has one text: it is stored and compared.
_NONE, _ALL, _TOP = "none", "all", re.compile(r"top-([1-9][0-9]*)")


@dataclass(frozen=True)
class TeacherPatches:
    """LR patches that the teacher reads; as text ``none``, ``all`` or ``top-K``.

    Attributes
    ----------
    k
        Number of patches, those with most student attention; 0 for none, None for all.
    """

    NONE: ClassVar[TeacherPatches]
    ALL: ClassVar[TeacherPatches]

    k: int | None

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 0:
            raise ValueError(f"the teacher cannot read {self.k} patches; expected 0 or more")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the value of ``none``, ``all`` or ``top-K``; raises `ConfigError` for any other text."""
        if text == _NONE:
            return cls(0)
        if text == _ALL:
            return cls(None)
        if (top := _TOP.fullmatch(text)) is not None:
            return cls(int(top[1]))
        raise ConfigError(f"unknown choice --teacher {text}; expected none, all, or top-K with a number, as in top-20")

    def __str__(self) -> str:
        if self.k is None:
            return _ALL
        return f"top-{self.k}" if self.k else _NONE

    def count(self, n_patches: int) -> int:
        """Return how many of `n_patches` LR patches the teacher reads."""
        return n_patches if self.k is None else min(self.k, n_patches)


TeacherPatches.NONE, TeacherPatches.ALL = TeacherPatches(0), TeacherPatches(None)


def select_teacher_patches(choice: TeacherPatches, student_attention: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return a mask of the LR patches that the teacher reads.

    Parameters
    ----------
    choice
        None, all, or the top k.
    student_attention
        (N,) attention of the student; patches with equal attention are taken in their order.

    Returns
    -------
    numpy.ndarray
        (N,) True for each patch that the teacher reads.
    """
    import numpy as np  # here, because the process of a command that has workers needs no NumPy

    rows = np.zeros(len(student_attention), dtype=np.bool_)
    order = np.argsort(-student_attention.astype(np.float64), kind="stable")  # stable: ties are reproducible
    rows[order[: choice.count(len(rows))]] = True
    return rows
