"""Notes in the rows of a worklist on models that know phantoms only, and on slides without a model. No Qt."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.models.bundle import SHIPPED
from napari_lrmil.core.models.card import read_card
from napari_lrmil.plugin.analyse.result_text import tissue_caution
from napari_lrmil.plugin.worklist.answer_jobs import shipped_model_of

if TYPE_CHECKING:
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.worklist.entry import StoredAnswer, WorklistEntry

NO_MODEL_FOR_SLIDE = "no model is chosen for this slide; choose one and run again"
SKIPPED = "{slides} not run, because no model is chosen; the State column marks them with ⚠."


class RowCautions:
    """What a list knows of its slides beyond their stored files."""

    def __init__(self) -> None:
        self._tissue: set[Path] = set()
        self._skipped: set[Path] = set()

    def note_tissue(self, path: Path) -> None:
        """Note that a slide has no mark of a phantom."""
        self._tissue.add(path)

    def note_skipped(self, path: Path) -> None:
        """Note that *Run all* left a slide out, because no model is chosen for it."""
        self._skipped.add(path)

    def forget_skipped(self) -> Iterable[Path]:
        """Return the slides that *Run all* left out, and forget them."""
        skipped, self._skipped = self._skipped, set()
        return skipped

    @property
    def skipped_text(self) -> str:
        """Sentence on how many slides *Run all* left out; empty if none."""
        count = len(self._skipped)
        return SKIPPED.format(slides=format_count(count, "slide was", "slides were")) if count else ""

    def add_to(self, entry: WorklistEntry, bundle: Bundle | None) -> WorklistEntry:
        """Return an entry with the notes that apply to it.

        Parameters
        ----------
        entry
            The entry.
        bundle
            The chosen model.
        """
        notes = []
        if entry.path in self._skipped and entry.answer is None:
            notes.append(NO_MODEL_FOR_SLIDE)
        if entry.path in self._tissue and entry.answer is not None:
            notes.append(model_caution(entry.answer, bundle))
        new = [note for note in notes if note and note not in entry.notes]
        return replace(entry, notes=(*entry.notes, *new)) if new else entry


def model_caution(answer: StoredAnswer, bundle: Bundle | None) -> str:
    """Return what the model of an answer says of its worth on tissue; empty if it knows tissue, or is not at hand.

    Parameters
    ----------
    answer
        The answer.
    bundle
        The chosen model. Shipped ones are known too.
    """
    if bundle is not None and bundle.sha256 == answer.bundle_sha256:
        return tissue_caution(bundle.card)
    name = shipped_model_of(answer)
    return tissue_caution(read_card(SHIPPED / name)) if name else ""
