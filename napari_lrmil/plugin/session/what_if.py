"""What if a part of the slide had not been there: regions left out, regions kept, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_lrmil.core.patching.regions import Region

if TYPE_CHECKING:
    from napari_lrmil.core.inference.prediction import Prediction


@dataclass(frozen=True)
class WhatIf:
    """Drawn regions that are left out, and those outside which all is left out."""

    excluded: tuple[Region, ...] = ()
    included: tuple[Region, ...] = ()

    def exclude(self, regions: Sequence[Region]) -> WhatIf:
        """Return the same with more regions left out."""
        return WhatIf((*self.excluded, *regions), self.included)

    def select_new(self, drawn: Sequence[Region], last: Prediction | None) -> Sequence[Region]:
        """Return which of the drawn regions a new step is about: those that `last` did not ask about, nor left out yet.

        Where there are none, somebody means the old ones.
        """
        known = (*(last.scope.regions if last is not None else ()), *self.excluded)
        return [region for region in drawn if region not in known] or drawn

    def keep_only(self, regions: Sequence[Region]) -> WhatIf:
        """Return the same with all left out but `regions`."""
        return WhatIf(self.excluded, tuple(regions))
