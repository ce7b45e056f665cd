"""What-if analysis: regions that the user excludes, or to which the user limits the slide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_lrmil.core.patching.regions import Region

if TYPE_CHECKING:
    from napari_lrmil.core.inference.prediction import Prediction


@dataclass(frozen=True)
class WhatIf:
    """One what-if state.

    Attributes
    ----------
    excluded
        Regions that are left out.
    included
        If there are any, everything outside them is left out.
    """

    excluded: tuple[Region, ...] = ()
    included: tuple[Region, ...] = ()

    def exclude(self, regions: Sequence[Region]) -> WhatIf:
        """Return the state with more regions left out."""
        return WhatIf((*self.excluded, *regions), self.included)

    def keep_only(self, regions: Sequence[Region]) -> WhatIf:
        """Return the state with everything left out except `regions`."""
        return WhatIf(self.excluded, tuple(regions))

    def select_new(self, drawn: Sequence[Region], last: Prediction | None) -> Sequence[Region]:
        """Return the drawn regions to which a new step applies.

        Regions of the last prediction's scope, and those that are already excluded, do not count: they are still
        drawn, but the user means the new ones. If no other region is drawn, all of them count.
        """
        # The layer of drawn regions keeps all of them, because the user may still move or delete them.
        old = (*(last.scope.regions if last is not None else ()), *self.excluded)
        return [region for region in drawn if region not in old] or drawn
