"""Verdicts on worklist entries: what a reviewer's choice means for the class of a slide."""

from __future__ import annotations

from dataclasses import replace

from napari_lrmil.core.worklist.entry import WorklistEntry
from napari_lrmil.core.worklist.review import ReviewRow, Verdict, time_now


def open_verdict(entry: WorklistEntry, verdict: Verdict, *, label: str = "", comment: str = "") -> ReviewRow:
    """Return the verdict of a reviewer who saw the model's answer. The name of the reviewer is still to be set.

    Parameters
    ----------
    entry
        The slide.
    verdict
        The verdict.
    label
        Class that the reviewer gives the slide. It is needed for a disagreement among more than two classes only.
    comment
        Free text.

    Raises
    ------
    ValueError
        If there is no answer to agree or disagree with.
    """
    answer = entry.answer
    if answer is None and verdict is not Verdict.UNSURE:
        raise ValueError("there is no answer to agree or disagree with")
    if answer is None or verdict is Verdict.UNSURE:
        label = ""
    elif verdict is Verdict.AGREE:
        label = answer.predicted
    elif not label and len(answer.classes) == 2:
        label = next(name for name in answer.classes if name != answer.predicted)
    return _row(entry, verdict, label, comment, is_blind=False)


def blind_verdict(entry: WorklistEntry, label: str, *, comment: str = "", is_blind: bool = True) -> ReviewRow:
    """Return the verdict of a reviewer who gave a class (empty: unsure) while the model's answer was hidden.

    Parameters
    ----------
    entry
        The slide.
    label
        The class.
    comment
        Free text.
    is_blind
        Whether the reviewer had not seen the answer before either.

    Raises
    ------
    ValueError
        If there is no answer that the class could be compared with.
    """
    if not label:
        return _row(entry, Verdict.UNSURE, "", comment, is_blind=is_blind)
    if entry.answer is None:
        raise ValueError("there is no answer to compare the class with")
    verdict = Verdict.AGREE if label == entry.answer.predicted else Verdict.DISAGREE
    return _row(entry, verdict, label, comment, is_blind=is_blind)


def _row(entry: WorklistEntry, verdict: Verdict, label: str, comment: str, *, is_blind: bool) -> ReviewRow:
    row = ReviewRow(entry.name, "", verdict, label, comment, time_now(), is_blind, patient=entry.patient)
    answer = entry.answer
    if answer is None:
        return row
    return replace(
        row,
        predicted=answer.predicted,
        probability=round(answer.probability, 6),
        bundle=answer.bundle,
        bundle_sha256=answer.bundle_sha256,
    )
