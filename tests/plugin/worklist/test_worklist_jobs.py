"""Background jobs of the worklist, without a window."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.events import Event, Failed, Finished, Partial
from napari_lrmil.core.features.embedding_cache import EmbeddingCache
from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.patching.regions import box_region
from napari_lrmil.core.patching.roi import WHOLE_SLIDE, RegionOfInterest
from napari_lrmil.core.results.cohort_tables import read_failures
from napari_lrmil.core.results.schema import PredictionFile
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.worklist.build import read_entry
from napari_lrmil.core.worklist.entry import ListedSlide, StoredAnswer, WorklistEntry
from napari_lrmil.plugin.session.open_slides import OpenSlides
from napari_lrmil.plugin.worklist.answer_jobs import (
    AnswerJob,
    SlideAnswer,
    SlideProblem,
    shipped_model_of,
    why_not_stored,
)
from napari_lrmil.plugin.worklist.jobs import (
    AheadJob,
    OpenedSlide,
    OpenSlideJob,
    ReadListJob,
    RunAllJob,
    ThumbnailsJob,
    slides_without_answer,
)
from support.fake_slides import speckled, write_tiff

CACHE_BYTES = 1 << 24


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with two slides and a broken one."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for seed, name in enumerate(("a", "b")):
        write_tiff(folder / f"{name}.tif", speckled(1280, 1000, seed), (1.0, 4.0), mpp=(0.5, 0.5))
    (folder / "broken.tif").write_bytes((folder / "a.tif").read_bytes()[:5000])
    return folder


@pytest.fixture
def open_slides() -> Iterator[OpenSlides]:
    opened = OpenSlides(lambda path, mpp: Slide(path, mpp=mpp))
    yield opened
    opened.close()


def read_list(*paths: Path) -> Any:
    *_, last = ReadListJob(paths).events()
    assert isinstance(last, Finished)
    return last.result


def partials(events: Iterator[Event]) -> list[Any]:
    return [event.result for event in events if isinstance(event, Partial)]


def test_a_folder_and_a_table_are_read(folder: Path) -> None:
    read = read_list(folder)
    assert [entry.name for entry in read.entries] == ["a", "b", "broken"]
    assert read.results == folder / "predictions" and read.title == "slides"
    (folder / "cohort.csv").write_text("slide,patient\nb.tif,P1\n")
    table = read_list(folder / "cohort.csv")
    assert [(entry.name, entry.patient) for entry in table.entries] == [("b", "P1")]
    empty = folder.parent / "empty"
    empty.mkdir()
    with pytest.raises(SlideError, match="no slide here"):
        read_list(empty)


def test_thumbnails_say_which_slides_are_broken(folder: Path) -> None:
    slides = tuple(entry.slide for entry in read_list(folder).entries)
    a, b, broken = partials(ThumbnailsJob(slides).events())
    assert a.pixels.shape == (38, 48, 3) and not a.problem and not np.array_equal(a.pixels, b.pixels)
    assert broken.pixels is None and broken.problem and str(folder) not in broken.problem


def test_an_answer_is_computed_once_stored_as_predict_stores_it_and_restored(
    folder: Path, bundle: Bundle, open_slides: OpenSlides
) -> None:
    read = read_list(folder)
    slide = read.entries[0].slide
    opened = OpenSlideJob(slide, CACHE_BYTES).open()
    choice = opened.choice
    assert choice is not None and (choice.name, choice.path, choice.mpp) == ("a", folder / "a.tif", 0.5)

    def job(computes: bool) -> AnswerJob:
        entry = read_entry(slide, read.results)
        return AnswerJob(entry, choice, read.results, bundle, "cpu", open_slides, EmbeddingCache(), computes)

    assert partials(job(computes=False).events()) == [], "nothing is computed if it is not wanted"
    (computed,) = partials(job(computes=True).events())
    file = PredictionFile.read(read.results / "a")
    assert file.path == "slides/a.tif" and (read.results / "predictions.csv").exists()
    (restored,) = partials(job(computes=False).events())
    assert isinstance(restored, SlideAnswer) and restored.prediction.student.probabilities == file.probabilities
    np.testing.assert_array_equal(
        restored.prediction.student.attention, computed.prediction.student.attention.astype(np.float32)
    )


def test_ahead_of_the_user_a_slide_is_opened_first_and_answered_then(
    folder: Path, bundle: Bundle, open_slides: OpenSlides
) -> None:
    read = read_list(folder)
    entry = read.entries[1]
    cache = EmbeddingCache()
    job = AheadJob(
        OpenSlideJob(entry.slide, CACHE_BYTES),
        lambda choice: AnswerJob(entry, choice, read.results, bundle, "cpu", open_slides, cache, computes=True),
    )
    opened, answer = partials(job.events())
    assert isinstance(opened, OpenedSlide) and isinstance(answer, SlideAnswer) and answer.path == entry.path
    assert open_slides.get_cached_tissue_grid(opened.choice, bundle) is not None


def test_what_cannot_be_opened_or_answered_is_said(folder: Path, bundle: Bundle, open_slides: OpenSlides) -> None:
    broken = OpenSlideJob(ListedSlide(folder / "broken.tif"), CACHE_BYTES).open()
    assert broken.problem and not broken.layers and broken.choice is None
    nameless = write_tiff(folder / "nameless.tif", speckled(640, 500), (1.0,))
    assert OpenSlideJob(ListedSlide(nameless), CACHE_BYTES).open().asks_mpp
    glass = write_tiff(folder / "glass.tif", np.full((1000, 1280, 3), 245, np.uint8), (1.0, 4.0), mpp=(0.5, 0.5))
    slide = ListedSlide(glass)
    choice = OpenSlideJob(slide, CACHE_BYTES).open().choice
    assert choice is not None
    results = folder / "predictions"
    job = AnswerJob(
        read_entry(slide, results), choice, results, bundle, "cpu", open_slides, EmbeddingCache(), computes=True
    )
    (problem,) = partials(job.events())
    assert isinstance(problem, SlideProblem) and "tissue" in problem.problem


def test_run_all_predicts_what_has_no_answer_and_goes_on_after_a_broken_slide(folder: Path, bundle: Bundle) -> None:
    read = read_list(folder)
    slides = slides_without_answer(read.entries, bundle)
    assert len(slides) == 3 and slides_without_answer(read.entries, None) == ()
    events = list(RunAllJob(slides, read.results, bundle, str(bundle.path), "cpu").events())
    assert len([event for event in events if isinstance(event, Partial)]) == 2
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert failed.subject == "broken.tif" and read_failures(read.results)[0][0] == "broken.tif"
    again = read_list(folder)
    assert [entry.status.value for entry in again.entries] == ["done", "done", "failed"]
    assert [slide.name for slide in slides_without_answer(again.entries, bundle)] == ["broken"]


def test_a_cancelled_run_leaves_the_finished_slides_in_the_tables(folder: Path, bundle: Bundle) -> None:
    read = read_list(folder)
    job = RunAllJob(slides_without_answer(read.entries, bundle), read.results, bundle, str(bundle.path), "cpu")
    with closing(job.events()) as events:  # type: ignore[type-var]  # generators close
        next(event for event in events if isinstance(event, Partial))
    assert (read.results / "predictions.csv").read_text().count("\n") == 2
    assert [entry.status.value for entry in read_list(folder).entries] == ["done", "new", "new"]


def test_answers_of_parts_and_beside_those_of_another_model_are_not_stored(folder: Path) -> None:
    answer = StoredAnswer("lesion", 0.9, ("normal", "lesion"), bundle="old", bundle_sha256="9" * 64)
    entry = WorklistEntry(ListedSlide(folder / "a.tif"), answer)
    scopes = {True: WHOLE_SLIDE, False: RegionOfInterest("view", (box_region(BoxLevel0(0, 0, 9, 9), "view"),))}
    texts = {
        (is_whole, sha): why_not_stored(entry, SimpleNamespace(scope=scope, bundle_sha256=sha * 64))  # type: ignore[arg-type]  # a stand-in
        for is_whole, scope in scopes.items()
        for sha in ("1", "9")
    }
    assert texts[True, "9"] == "" and "old (99999999) is kept" in texts[True, "1"]
    assert "part of the slide" in texts[False, "9"] and "part of the slide" in texts[False, "1"]


def test_the_shipped_model_of_a_stored_answer_is_known_by_name_and_hash() -> None:
    answer = StoredAnswer("lesion", 0.9, ("normal", "lesion"), bundle="demo", bundle_sha256=Bundle("demo").sha256)
    assert shipped_model_of(answer) == "demo"
    assert shipped_model_of(replace(answer, bundle_sha256="9" * 64)) == ""
    assert shipped_model_of(replace(answer, bundle="mine")) == "" and shipped_model_of(None) == ""
