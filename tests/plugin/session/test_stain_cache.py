"""Embeddings of a model that normalises colours: recognised as cached, in partial results and in estimates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_lrmil.core.events import Finished, Notice, Partial
from napari_lrmil.core.features.embedding_cache import EmbeddingCache
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.patching.stain import StainStatistics, StainTarget
from napari_lrmil.plugin.session import jobs
from napari_lrmil.plugin.session.eta import cached_student_attention
from napari_lrmil.plugin.session.jobs import PredictJob
from napari_lrmil.plugin.session.open_slides import OpenSlides, SlideChoice
from support.fake_slides import DarknessBundle, FakeSlide, fake_slide, resolution, speckled

TARGET = StainTarget("density_gain", StainStatistics((0.4, 0.5, 0.3), (60.0, 20.0, 0.0), (9.0, 9.0, 9.0), 9000))
CHOICE = SlideChoice("slide", Path("slide.tif"), 0.5)


@pytest.fixture
def bundle() -> Any:
    return DarknessBundle(stain=TARGET)


@pytest.fixture
def shelf(tmp_path: Path) -> OpenSlides:
    slide = fake_slide(tmp_path, FakeSlide(speckled(1300, 800), (1.0, 2.0, 4.0), resolution(0.5)))
    return OpenSlides(lambda *_: slide)


def predicted(bundle: Any, shelf: OpenSlides, cache: EmbeddingCache) -> Prediction:
    *_, last = PredictJob(CHOICE, bundle, "cpu", shelf, cache).events()
    assert isinstance(last, Finished)
    prediction: Prediction = last.result
    return prediction


def test_partial_results_have_the_colours_of_the_whole(
    bundle: Any, shelf: OpenSlides, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A partial result takes the embeddings of the run, and encodes none of its own under other statistics."""
    monkeypatch.setattr(jobs, "PARTIAL_INTERVAL_S", -1.0)
    cache = EmbeddingCache()
    events = list(PredictJob(CHOICE, bundle, "cpu", shelf, cache).live_events())
    partial = [event.result for event in events if isinstance(event, Partial)]
    assert partial and not any(isinstance(event, Notice) for event in events)
    assert all(result.student.patches_encoded == 0 for result in partial)
    again = predicted(bundle, shelf, cache)
    assert again.student.patches_encoded == 0
    np.testing.assert_allclose(again.student.attention, partial[-1].student.attention, atol=1e-6)


def test_an_estimate_knows_what_is_cached(bundle: Any, shelf: OpenSlides) -> None:
    cache = EmbeddingCache()
    last = predicted(bundle, shelf, cache)
    slide, tissue_grid = shelf.get_slide(CHOICE), shelf.get_tissue_grid(CHOICE, bundle)
    stain = shelf.get_cached_stain(CHOICE, bundle, tissue_grid)
    assert stain is not None
    known = cached_student_attention(last, tissue_grid.grid, slide, bundle, cache, stain)
    assert known is last.student.attention
    assert cached_student_attention(last, tissue_grid.grid, slide, bundle, cache) is None, "not measured yet"


def test_another_tissue_is_measured_again(bundle: Any, shelf: OpenSlides) -> None:
    first = shelf.get_tissue_grid(CHOICE, bundle)
    stain = shelf.get_stain(CHOICE, bundle, first)
    assert shelf.get_stain(CHOICE, bundle, first) is stain
    mask = first.tissue.mask.copy()
    mask[:, : mask.shape[1] // 2] = False
    edited = shelf.set_edited_mask(CHOICE, bundle, mask)
    assert shelf.get_cached_stain(CHOICE, bundle, edited) is None
    assert shelf.get_stain(CHOICE, bundle, edited) != stain
    plain: Any = DarknessBundle()
    assert shelf.get_stain(CHOICE, plain, first) is None
