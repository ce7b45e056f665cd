"""What there is to read in an answer: its words, and what lies under the cursor. No Qt, no napari."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from napari_lrmil.core.formatting import format_agreement

if TYPE_CHECKING:
    from napari_lrmil.core.inference.prediction import Prediction


@dataclass(frozen=True)
class ResultText:
    """A prediction, as people read it."""

    prediction: Prediction

    @property
    def trust(self) -> str:
        """What kind of figures the probabilities are."""
        if not self.prediction.scope.is_whole_slide:
            return f"Region score of the {self.prediction.scope.text}, uncalibrated."
        known = "calibrated on validation slides" if self.prediction.calibrated else "not calibrated"
        return f"Probabilities, {known}."

    @property
    def margin(self) -> float:
        """How far the most probable class is before the next."""
        first, second = sorted(self.prediction.student.probabilities.values(), reverse=True)[:2]
        return first - second

    @property
    def basis(self) -> str:
        """On how much the answer rests."""
        p = self.prediction
        seconds, patches = p.student.seconds["total"], len(p.grid.lr_index)
        known = patches - p.student.patches_encoded
        before = f", {known} of them seen before" if known else ""
        return (
            f"Margin {self.margin:.2f} · {patches} patches of {p.grid.lattice.lr_um:.0f} µm{before} · {seconds:.1f} s"
        )

    @property
    def agreement(self) -> str:
        """How far student and teacher look at the same places; empty if no teacher ran."""
        p = self.prediction
        if p.agreement is None:
            return ""
        return f"Agreement on where they looked: {format_agreement(p.agreement, len(p.grid.lr_index))}."

    def evidence_sum(self, name: str) -> str:
        """Return the sum of a class's evidence, and how it makes the centred logit."""
        c = self.prediction.classes.index(name)
        logits = np.array(list(self.prediction.student.logits.values()))
        total, logit = float(self.prediction.student.evidence[:, c].sum()), float(logits[c] - logits.mean())
        return f"Σ {total:+.2f}, bias {logit - total:+.2f}: centred, uncalibrated logit {logit:+.2f}"

    # ------------------------------------------------------------ under the cursor

    @cached_property
    def _rows(self) -> dict[tuple[int, int], int]:
        return {(int(c), int(r)): row for row, (c, r) in enumerate(self.prediction.grid.lr_index)}

    @cached_property
    def _ranks(self) -> dict[int, int]:
        order = np.argsort(-self.prediction.student.attention, kind="stable")
        return {int(row): rank for rank, row in enumerate(order, start=1)}

    def row_at(self, x_um: float, y_um: float) -> int | None:
        """Return the row of the patch at a place in the viewer's world; None where there is none."""
        lattice = self.prediction.grid.lattice
        x, y = x_um / lattice.mpp.x - lattice.origin[0], y_um / lattice.mpp.y - lattice.origin[1]
        return self._rows.get((int(x // lattice.lr_cell[0]), int(y // lattice.lr_cell[1])))

    def text_at(self, x_um: float, y_um: float) -> str:
        """Return what is known of the patch at a place, in a line; the place alone where there is none."""
        place, row = f"x {x_um:,.0f} µm, y {y_um:,.0f} µm", self.row_at(x_um, y_um)
        if row is None:
            return f"{place} · no patch here"
        student = self.prediction.student
        relative, count = student.attention[row] * len(student.attention), len(student.attention)
        evidence = ", ".join(
            f"{name} {value:+.3f}" for name, value in zip(self.prediction.classes, student.evidence[row], strict=True)
        )
        looked = f"attention {relative:.2f} times the average, rank {self._ranks[row]} of {count}"
        return f"{place} · {looked} · evidence {evidence}"
