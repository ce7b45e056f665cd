"""A slide that does not say how large its pixels are: ask, and remember the answer for that file. No Qt.

`mppdialog` is the window that asks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from napari_lrmil.core.files import whole
from napari_lrmil.core.resolution import PLAUSIBLE_MPP

if TYPE_CHECKING:
    from napari_lrmil.core.slide import Slide

COMMON = {"20x": 0.5, "40x": 0.25}  # µm per pixel of the usual scans


class Estimate(Protocol):
    """A resolution that was estimated from the pixels: µm per pixel, and the range in which it may lie."""

    @property
    def mpp(self) -> float: ...  # noqa: D102
    @property
    def low(self) -> float: ...  # noqa: D102
    @property
    def high(self) -> float: ...  # noqa: D102


EstimateMpp = Callable[[], Estimate | None]


@dataclass(frozen=True)
class Answer:
    """µm per level-0 pixel as the user says, and whether to remember it for the file."""

    mpp: float
    remember: bool = True

    def __post_init__(self) -> None:
        if not is_plausible(self.mpp):
            low, high = PLAUSIBLE_MPP
            raise ValueError(f"{self.mpp:g} µm per pixel is no resolution of a slide; expected {low:g} to {high:g}")


Ask = Callable[["Slide"], Answer | None]  # None: the user does not want to say


def is_plausible(mpp: float) -> bool:
    """Whether a slide may have such a resolution."""
    return PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1]


class RememberedMpp:
    """What was answered for which file, by the slide's fingerprint, so that a file may be moved or renamed.

    Parameters
    ----------
    path
        A JSON file; by default in the user's configuration folder. One that cannot be read counts as empty: the user
        is asked again, and the answer replaces it.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or _default_path()

    def get(self, fingerprint: str) -> float | None:
        """Return what was answered for a slide; None where nothing was, or nothing that makes sense."""
        found = self._all().get(fingerprint)
        return float(found) if isinstance(found, int | float) and is_plausible(found) else None

    def put(self, fingerprint: str, mpp: float) -> None:
        """Remember an answer, whole or not at all."""
        answers = {**self._all(), fingerprint: mpp}
        with whole(self.path) as partial:
            partial.write_text(json.dumps(answers, indent=1), encoding="utf-8")

    def forget(self, fingerprint: str) -> None:
        """Ask again next time."""
        answers = {k: v for k, v in self._all().items() if k != fingerprint}
        with whole(self.path) as partial:
            partial.write_text(json.dumps(answers, indent=1), encoding="utf-8")

    def _all(self) -> dict[str, object]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _default_path() -> Path:
    from platformdirs import user_config_path

    return Path(user_config_path("napari-lrmil", appauthor=False)) / "mpp.json"


def mpp_for(slide: Slide, ask: Ask, memory: RememberedMpp | None = None) -> float | None:
    """Return µm per level-0 pixel: as the file says, else as was once answered for it, else as `ask` answers now.

    Returns
    -------
    float or None
        None where the user does not want to say: the slide cannot be used then.
    """
    if slide.has_mpp:
        return slide.mpp.mean
    known = memory.get(slide.fingerprint) if memory is not None else None
    if known is not None:
        return known
    answer = ask(slide)
    if answer is None:
        return None
    if answer.remember and memory is not None:
        memory.put(slide.fingerprint, answer.mpp)
    return answer.mpp
