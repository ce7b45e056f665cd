"""Text of a result for the dock and for the status line under the cursor. No Qt, no napari."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from napari_lrmil.core.formatting import format_agreement, format_probability
from napari_lrmil.plugin.session.scope_text import count_patches, scope_words

if TYPE_CHECKING:
    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.models.card import Card


@dataclass(frozen=True)
class ResultText:
    """Text of one prediction."""

    prediction: Prediction

    @property
    def headline(self) -> str:
        """The most probable class with its probability, and whether that is calibrated."""
        p = self.prediction
        value = format_probability(p.student.probabilities[p.student.predicted])
        if not p.scope.is_whole_slide:
            return f"{p.student.predicted}: region score {value}, uncalibrated"
        return f"{p.student.predicted}: {value}, {'calibrated' if p.calibrated else 'not calibrated'}"

    @property
    def trust(self) -> str:
        """Sentence on how far the probabilities can be trusted; only whole slides are calibrated."""
        if not self.prediction.scope.is_whole_slide:
            return f"Region score of the {scope_words(self.prediction.scope)}, uncalibrated."
        calibration = "calibrated on validation slides" if self.prediction.calibrated else "not calibrated"
        return f"Probabilities, {calibration}."

    @property
    def limits(self) -> str:
        """Side of the operating point and set of classes; empty if the model has no such limits."""
        texts = self.prediction.limits.texts
        sentence = "; ".join(texts)
        return f"{sentence[0].upper()}{sentence[1:]}." if texts else ""

    @property
    def distance(self) -> str:
        """How far the slide lies from the training slides; empty if unknown, or if a warning says it already."""
        distance = self.prediction.cohort_distance
        return "" if distance is None or distance.is_outside else f"This slide is {distance.text}."

    @property
    def margin(self) -> float:
        """Difference between the two highest class probabilities, 0 to 1."""
        first, second = sorted(self.prediction.student.probabilities.values(), reverse=True)[:2]
        return first - second

    @property
    def basis(self) -> str:
        """Margin, number of patches and seconds of the student."""
        p = self.prediction
        seconds, patches = p.student.seconds["total"], len(p.grid.lr_index)
        n_cached = p.student.patches_from_cache
        cached = f", {n_cached} from the cache" if n_cached else ""
        size = f"{count_patches(patches)} of {p.grid.lattice.lr_um:.0f} µm{cached}"
        return f"Margin {self.margin:.2f} · {size} · {seconds:.1f} s"

    @property
    def agreement(self) -> str:
        """Agreement of the student's and the teacher's attention; empty if no teacher ran."""
        p = self.prediction
        if p.agreement is None:
            return ""
        return f"Agreement of attention: {format_agreement(p.agreement, len(p.grid.lr_index))}."

    def evidence_sum(self, name: str) -> str:
        """Return the sum of a class's evidence, the bias and their sum, the centred logit.

        Logits are centred on their mean over the classes, because softmax ignores a common offset.

        Parameters
        ----------
        name
            The class.
        """
        c = self.prediction.classes.index(name)
        logits = np.array(list(self.prediction.student.logits.values()))
        total, logit = float(self.prediction.student.evidence[:, c].sum()), float(logits[c] - logits.mean())
        return f"Σ {total:+.2f}, bias {logit - total:+.2f}: centred, uncalibrated logit {logit:+.2f}"

    # ------------------------------------------------------------ under the cursor

    # Dictionaries, because the cursor asks at every move of the mouse.
    @cached_property
    def _rows(self) -> dict[tuple[int, int], int]:
        return {(int(c), int(r)): row for row, (c, r) in enumerate(self.prediction.grid.lr_index)}

    @cached_property
    def _ranks(self) -> dict[int, int]:
        order = np.argsort(-self.prediction.student.attention, kind="stable")
        return {int(row): rank for rank, row in enumerate(order, start=1)}

    def row_at(self, x_um: float, y_um: float) -> int | None:
        """Return the prediction's row of the patch at a point in the viewer's world (µm); None if no patch is there."""
        lattice = self.prediction.grid.lattice
        x, y = x_um / lattice.mpp.x - lattice.origin[0], y_um / lattice.mpp.y - lattice.origin[1]
        return self._rows.get((int(x // lattice.lr_cell[0]), int(y // lattice.lr_cell[1])))

    def text_at(self, x_um: float, y_um: float) -> str:
        """Return coordinates, attention, rank and evidence at a point in the viewer's world (µm), in one line."""
        position, row = f"x {x_um:,.0f} µm, y {y_um:,.0f} µm", self.row_at(x_um, y_um)
        if row is None:
            return f"{position} · no patch here"
        student = self.prediction.student
        relative, count = student.attention[row] * len(student.attention), len(student.attention)
        evidence = ", ".join(
            f"{name} {value:+.3f}" for name, value in zip(self.prediction.classes, student.evidence[row], strict=True)
        )
        attention = f"attention {relative:.2f} times the average, rank {self._ranks[row]} of {count}"
        return f"{position} · {attention} · evidence {evidence}"


def knows_tissue(card: Card) -> bool:
    """Return whether a model may say something about tissue: not if its card says that it knows phantoms only."""
    return "phantoms only" not in card.intended_use.lower()


def tissue_caution(card: Card) -> str:
    """Return the sentences of a model that knows no tissue on what its answer is worth; empty for other models."""
    if knows_tissue(card):
        return ""
    sentences = [sentence.strip(" .") for sentence in card.about.split(". ") if "tissue" in sentence]
    return ". ".join([f"{card.name}: {card.intended_use}", *sentences]) + "."
