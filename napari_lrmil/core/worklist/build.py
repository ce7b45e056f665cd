"""Construction of a worklist: slides of a folder or a table, joined with stored results, failures and verdicts.

No slide is opened: a broken slide shows its fault when it is read, and the list of thousands takes seconds.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from napari_lrmil.core.errors import StoredError
from napari_lrmil.core.results.cohort_tables import read_failures
from napari_lrmil.core.results.schema import PREDICTION, PredictionFile
from napari_lrmil.core.slides.slide_files import SlideSearch, path_in_cohort
from napari_lrmil.core.text_escapes import printable
from napari_lrmil.core.worklist.entry import ListedSlide, StoredAnswer, WorklistEntry
from napari_lrmil.core.worklist.review import ReviewRow

RESULTS_FOLDER = "predictions"  # the default of the command line's --out
OTHER_MODEL = "answer of another model:"
VANISHED = "the slide is not there any more; put it back, or open the folder again"


@dataclass(frozen=True)
class SlideListing:
    """Slides of a worklist, and sentences on what was left out of it."""

    slides: tuple[ListedSlide, ...]
    notices: tuple[str, ...] = ()


def list_folder(folders: Iterable[Path]) -> SlideListing:
    """Return the slides in folders and their subfolders, and in files, as ``predict`` lists them.

    Slides whose results would have the name of another slide's are listed with that problem.
    """
    search, slides = SlideSearch(), list[ListedSlide]()
    for path in folders:
        before = len(search.slides)
        if path.is_dir():
            search.add_folder(path)
        else:
            search.add_file(path, is_only=False)
        slides += [ListedSlide(p, path_in_cohort=path_in_cohort(p, path)) for p in search.slides[before:]]
    return SlideListing(mark_same_names(slides), tuple(filter(None, (search.notice,))))


def mark_same_names(slides: Iterable[ListedSlide]) -> tuple[ListedSlide, ...]:
    """Return the slides; one whose results would overwrite those of an earlier one has that as its problem."""
    first: dict[str, ListedSlide] = {}
    marked = []
    for slide in slides:
        other = first.setdefault(os.path.normcase(slide.name), slide)
        if other is not slide and not slide.problem:
            where = printable(other.path_in_cohort or other.path)
            slide = replace(slide, problem=f"its results would overwrite those of {where}; rename one of the two")
        marked.append(slide)
    return tuple(marked)


def find_results_folder(root: Path, slides: Iterable[ListedSlide]) -> Path:
    """Return the folder in which the results of the slides are, or shall be.

    Parameters
    ----------
    root
        Folder of the slides, or of the table that lists them.
    slides
        The slides.

    Returns
    -------
    Path
        The first of ``root/predictions``, `root` itself, ``predictions`` beside `root` and in the working directory
        that holds results of one of the slides; ``root/predictions`` if none does.
    """
    names = {slide.name for slide in slides}
    absolute = Path(os.path.abspath(root))
    candidates = (absolute / RESULTS_FOLDER, absolute, absolute.parent / RESULTS_FOLDER, Path.cwd() / RESULTS_FOLDER)
    for folder in candidates:
        if any((folder / name / PREDICTION).is_file() for name in names):
            return folder
    return candidates[0]


def read_entries(
    slides: Iterable[ListedSlide],
    results: Path,
    *,
    reviews: Mapping[str, ReviewRow] | None = None,
    model_sha256: str | None = None,
) -> list[WorklistEntry]:
    """Return a row for each slide, with what is stored about it. Faults of single slides become part of their rows.

    Parameters
    ----------
    slides
        The slides, in the order of the list.
    results
        Folder of the results.
    reviews
        Slide name -> verdict of the present reviewer.
    model_sha256
        Hash of the chosen model. Answers of other models get a note; None compares with the most frequent model.
    """
    failures = _failure_reasons(results)
    verdicts = reviews or {}
    entries = [read_entry(slide, results, verdicts.get(slide.name), failures) for slide in slides]
    return note_other_models(entries, model_sha256)


def read_entry(
    slide: ListedSlide, results: Path, review: ReviewRow | None = None, failures: Mapping[str, str] | None = None
) -> WorklistEntry:
    """Return the row of one slide.

    Parameters
    ----------
    slide
        The slide.
    results
        Folder of all results.
    review
        Verdict of the present reviewer.
    failures
        File name -> reason of ``failures.csv``; None reads that file.
    """
    reasons = _failure_reasons(results) if failures is None else failures
    failed = reasons.get(printable(slide.path.name), "")
    answer, broken = (None, "") if slide.problem else _read_answer(results / slide.name)
    is_there = os.path.exists(slide.path)
    problem = slide.problem or ("" if is_there else VANISHED) or broken or ("" if answer else failed)
    notes = [*slide.notes]
    if answer is not None and failed:
        notes.append(f"a later run failed: {failed}")
    if answer is not None and not _is_of_whole_slide(answer):
        notes.append(f"answer for a part of the slide: {printable(answer.scope)}")
    return WorklistEntry(slide, answer, review, problem, tuple(notes))


def _is_of_whole_slide(answer: StoredAnswer) -> bool:
    from napari_lrmil.core.patching.roi import WHOLE_SLIDE  # here, because it loads NumPy and Shapely

    return answer.scope in ("", WHOLE_SLIDE.text)


def _failure_reasons(results: Path) -> dict[str, str]:
    """Return file name -> reason of ``failures.csv``; a file that is no such table gives none."""
    try:
        rows = read_failures(results)
    except (OSError, ValueError):  # failures.csv is a by-product: the slides themselves show their faults again
        return {}
    return {row[0]: f"{row[1]}: {row[2]}" for row in rows if len(row) == 3}


def _read_answer(folder: Path) -> tuple[StoredAnswer | None, str]:
    """Return the stored answer of a slide, and what is wrong with it."""
    if not (folder / PREDICTION).is_file():
        return None, ""
    try:
        return StoredAnswer.of(PredictionFile.read(folder)), ""
    except StoredError as error:
        return None, printable(" ".join(str(error).split()))
    except KeyError:  # the predicted class has no probability
        return None, "the stored result names a class without a probability; run the analysis again"


def note_other_models(entries: Sequence[WorklistEntry], model_sha256: str | None = None) -> list[WorklistEntry]:
    """Return the entries; an answer of another model than the chosen or most frequent one gets a note."""
    counts = Counter(entry.answer.bundle_sha256 for entry in entries if entry.answer is not None)
    if not counts:
        return list(entries)
    usual = model_sha256 or counts.most_common(1)[0][0]
    which = "the chosen model" if model_sha256 else "the model of most slides here"
    return [_note_model(entry, usual, which) for entry in entries]


def _note_model(entry: WorklistEntry, usual: str, which: str) -> WorklistEntry:
    notes = tuple(note for note in entry.notes if not note.startswith(OTHER_MODEL))
    if entry.answer is not None and entry.answer.bundle_sha256 != usual:
        notes = (*notes, f"{OTHER_MODEL} {entry.answer.model_text}, not of {which}")
    return entry if notes == entry.notes else replace(entry, notes=notes)


def without_slides(results: Path, slides: Iterable[ListedSlide]) -> tuple[str, ...]:
    """Return the names of stored results whose slide is not in the list, sorted."""
    names = {slide.name for slide in slides}
    return tuple(sorted(path.parent.name for path in results.glob(f"*/{PREDICTION}") if path.parent.name not in names))
