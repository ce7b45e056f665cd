"""What each thing that differs between two setups saves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from napari_lrmil.core.costs.chain import CHAIN, HR_OPENSLIDE, HR_STUDENT, LR, LR_TORCH, TODAY
from napari_lrmil.core.costs.measure import Measured

EVERYTHING = "everything"


@dataclass(frozen=True)
class Factor:
    """How many times less one setup costs than another.

    Attributes
    ----------
    changed
        What differs: encoder, reader, runtime, resolution, or `EVERYTHING`.
    before, after
        Names of the setups.
    cpu, wall
        CPU-seconds and wall seconds, the former over the latter.
    patches
        Patches, likewise.
    """

    changed: str
    before: str
    after: str
    cpu: float
    wall: float
    patches: float

    @property
    def share_of_patches(self) -> float:
        """CPU-seconds saved over patches saved: 1 where a patch costs the same at either resolution."""
        return self.cpu / self.patches


def factors(found: Sequence[Measured]) -> list[Factor]:
    """Return the factor of each change along the chain, as far as it was measured, and that of all of them together.

    The resolution's comes a second time, for torch and OpenSlide, where both were measured.
    """
    by_setup = {measured.setup: measured for measured in found}
    pairs = [(b.changed, a, b) for a, b in pairwise(CHAIN)]
    pairs += [(LR.changed, HR_OPENSLIDE, LR_TORCH), (EVERYTHING, TODAY, LR)]
    return [
        _factor(changed, by_setup[before], by_setup[after])
        for changed, before, after in pairs
        if before in by_setup and after in by_setup
    ]


def _factor(changed: str, before: Measured, after: Measured) -> Factor:
    return Factor(
        changed,
        before.setup.name,
        after.setup.name,
        before.cpu["total"] / after.cpu["total"],
        before.wall["total"] / after.wall["total"],
        before.patches / after.patches,
    )


def resolution_shares(found: Sequence[Measured]) -> list[float]:
    """Return `Factor.share_of_patches` of the resolution, on the fast path and on the reference path."""
    names = (HR_STUDENT.name, HR_OPENSLIDE.name)
    return [f.share_of_patches for f in factors(found) if f.changed == LR.changed and f.before in names]
