"""How long work takes: what is left of it, and what it should take before it begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.remembered import PaceKey, Remembered

if TYPE_CHECKING:
    from napari_lrmil.core.predict import Prediction

MANY = 1000  # patches of which the pace is asked
ETA_AFTER_S = 2.0  # before that the pace of a stage is not known


@dataclass(frozen=True)
class Pace:
    """How far a stage is: units done, units in all, seconds since the stage began."""

    stage: str
    done: int
    total: int
    unit: str
    seconds: float

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.done / self.total if self.total else 0.0

    @property
    def text(self) -> str:
        """One line: the stage, the share, and the time left where it is known."""
        left = self.seconds * (self.total - self.done) / self.done if self.done else 0.0
        shown = f" · {left:.0f} s left" if self.seconds > ETA_AFTER_S and left >= 1 else ""
        return f"{self.stage} · {self.share:.0%}{shown}"


@dataclass(frozen=True)
class Estimate:
    """What a run would read: LR patches, HR patches of a teacher, and the seconds that it should take, where known."""

    patches: int
    hr_patches: int
    seconds: float | None

    @property
    def text(self) -> str:
        """One line for the user, before a run."""
        hr = f" + {self.hr_patches} of the teacher" if self.hr_patches else ""
        time_needed = f"about {_seconds(self.seconds)}" if self.seconds is not None else "time not known yet"
        return f"{self.patches} patches{hr} · {time_needed}"


def _seconds(value: float) -> str:
    return "a second" if value < 1.5 else f"{value:.0f} s" if value < 90 else f"{value / 60:.0f} min"


class Paces:
    """What a patch takes on this machine; asked often, so each is looked up once.

    Parameters
    ----------
    remembered
        What the last runs took.
    """

    def __init__(self, remembered: Remembered) -> None:
        self._remembered = remembered
        self._known: dict[PaceKey, float | None] = {}

    def expected(self, bundle_sha256: str, device: str, network: str, patches: int) -> float | None:
        """Return the seconds that patches should take; None where nothing was run yet."""
        key = PaceKey(bundle_sha256, device, network)
        if key not in self._known:
            self._known[key] = self._remembered.expected_seconds(key, MANY)
        known = self._known[key]
        return None if known is None else known / MANY * patches

    def learn(self, prediction: Prediction, device: str) -> list[str]:
        """Keep what a run took, and return sentences on what kept it from being kept; the cache teaches nothing."""
        self._known.clear()
        told = []
        for network, reading in (("student", prediction.student), ("teacher", prediction.teacher)):
            if reading is None or reading.seconds["encode"] <= 0:
                continue
            key = PaceKey(prediction.bundle_sha256, device, network)
            try:
                self._remembered.remember_pace(key, reading.seconds["total"], reading.patches_encoded)
            except LrmilError as error:  # the answer is there all the same
                told.append(str(error))
        return told
