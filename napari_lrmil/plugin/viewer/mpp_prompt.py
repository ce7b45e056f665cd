"""A slide that does not say how large its pixels are: ask, and remember the answer for that file. No Qt.

`mppdialog` is the window that asks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from napari_lrmil.core.slides.resolution import PLAUSIBLE_MPP
from napari_lrmil.core.user_settings import SettingsStore

if TYPE_CHECKING:
    from napari_lrmil.core.slides.slide import Slide

COMMON_MPP = {"20x": 0.5, "40x": 0.25}  # µm per pixel of the usual scans


class MppRange(Protocol):
    """A resolution that was estimated from the pixels: µm per pixel, and the range in which it may lie."""

    @property
    def mpp(self) -> float: ...  # noqa: D102
    @property
    def low(self) -> float: ...  # noqa: D102
    @property
    def high(self) -> float: ...  # noqa: D102


EstimateMpp = Callable[[], MppRange | None]


@dataclass(frozen=True)
class MppAnswer:
    """µm per level-0 pixel as the user says, and whether to remember it for the file."""

    mpp: float
    remember: bool = True

    def __post_init__(self) -> None:
        if not is_plausible(self.mpp):
            low, high = PLAUSIBLE_MPP
            raise ValueError(f"{self.mpp:g} µm per pixel is no resolution of a slide; expected {low:g} to {high:g}")


AskMpp = Callable[["Slide"], MppAnswer | None]  # None: the user does not want to say


def is_plausible(mpp: float) -> bool:
    """Whether a slide may have such a resolution."""
    return PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]


def resolve_mpp(slide: Slide, ask: AskMpp, memory: SettingsStore | None = None) -> float | None:
    """Return µm per level-0 pixel: as the file says, else as was once answered for it, else as `ask` answers now.

    Returns
    -------
    float or None
        None where the user does not want to say: the slide cannot be used then.
    """
    if slide.has_mpp:
        return slide.mpp.mean
    known = memory.remembered_mpp(slide.fingerprint) if memory is not None else None
    if known is not None:
        return known
    answer = ask(slide)
    if answer is None:
        return None
    if answer.remember and memory is not None:
        memory.remember_mpp(slide.fingerprint, answer.mpp)
    return answer.mpp
