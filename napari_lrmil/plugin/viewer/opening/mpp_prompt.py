"""Resolution of slides whose file does not state it: ask the user, and remember the answer per file. No Qt.

`mpp_dialog` is the window that asks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from napari_lrmil.core.slides.resolution import PLAUSIBLE_MPP
from napari_lrmil.core.user_settings import SettingsStore

if TYPE_CHECKING:
    from napari_lrmil.core.slides.slide import Slide

COMMON_MPP = {"20x": 0.5, "40x": 0.25}  # µm per pixel of common scans, offered as buttons


class MppRange(Protocol):
    """Resolution that was estimated from the pixels, in µm per pixel, with the range in which it probably lies."""

    @property
    def mpp(self) -> float: ...  # noqa: D102
    @property
    def low(self) -> float: ...  # noqa: D102
    @property
    def high(self) -> float: ...  # noqa: D102


EstimateMpp = Callable[[], MppRange | None]


@dataclass(frozen=True)
class MppAnswer:
    """Answer of the user: µm per level-0 pixel, and whether to remember it for the file.

    Raises
    ------
    ValueError
        If no slide has such a resolution.
    """

    mpp: float
    remember: bool = True

    def __post_init__(self) -> None:
        if not is_plausible(self.mpp):
            low, high = PLAUSIBLE_MPP
            raise ValueError(f"{self.mpp:g} µm per pixel is no resolution of a slide; expected {low:g} to {high:g}")


AskMpp = Callable[["Slide"], MppAnswer | None]  # returns None if the user cancels


def is_plausible(mpp: float) -> bool:
    """Return whether a slide can have this resolution, in µm per pixel."""
    return PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]


def resolve_mpp(slide: Slide, ask: AskMpp, memory: SettingsStore | None = None) -> float | None:
    """Return the µm per level-0 pixel from the file, from an earlier answer, or from a new answer, in this order.

    Parameters
    ----------
    slide
        The slide.
    ask
        Asks the user.
    memory
        Store of answers, by the fingerprint of the slide; None neither reads nor stores answers.

    Returns
    -------
    float or None
        None if the user cancels; the slide cannot be used without a resolution.
    """
    if slide.has_mpp:
        return slide.mpp.mean
    remembered = memory.remembered_mpp(slide.fingerprint) if memory is not None else None
    if remembered is not None:
        return remembered
    answer = ask(slide)
    if answer is None:
        return None
    if answer.remember and memory is not None:
        memory.remember_mpp(slide.fingerprint, answer.mpp)
    return answer.mpp
