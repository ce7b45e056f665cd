"""Questions about a part of a slide: which patches are meant, and that answers are those of the patches alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from napari_lrmil.core.errors import TissueError
from napari_lrmil.core.events import Notice
from napari_lrmil.core.features.embedding_cache import EmbeddingCache
from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.patching.grid import find_tissue_grid
from napari_lrmil.core.patching.regions import box_region
from napari_lrmil.core.patching.roi import WHOLE_SLIDE, RegionOfInterest, read_scope
from napari_lrmil.core.slides.slide import Slide
from support.fake_slides import DarknessBundle, FakeSlide, fake_slide, one_sentence, resolution, speckled

CPU = torch.device("cpu")
LEFT = box_region(BoxLevel0(0, 0, 700, 900), "left")
CORNER = box_region(BoxLevel0(0, 0, 300, 300), "corner")


@pytest.fixture
def slide(tmp_path: Path) -> Slide:
    return fake_slide(tmp_path, FakeSlide(speckled(1536, 1024), (1.0, 4.0), resolution(0.5)))


def ask(slide: Slide, bundle: Any = None, **how: Any) -> Prediction:
    *_, last = predict(slide, bundle or DarknessBundle(), device=CPU, **how)
    result: Prediction = last.result  # type: ignore[union-attr]  # the last event carries it
    return result


def selected(scope: RegionOfInterest, slide: Slide) -> NDArray[np.bool_]:
    card = DarknessBundle().card
    return scope.select(find_tissue_grid(slide, card.plan, card.tissue)).is_selected


def test_a_region_is_answered_by_its_patches_alone(slide: Slide) -> None:
    bundle = DarknessBundle()
    whole, part = ask(slide, bundle), ask(slide, bundle, scope=RegionOfInterest("region", (LEFT,)))
    meant = selected(RegionOfInterest("region", (LEFT,)), slide)
    assert 0 < meant.sum() < len(meant)
    np.testing.assert_array_equal(part.student.coords, whole.student.coords[meant])
    assert part.student.attention.sum() == pytest.approx(1, abs=1e-5)
    expected = whole.student.attention[meant] / whole.student.attention[meant].sum()
    np.testing.assert_allclose(part.student.attention, expected, rtol=1e-4)


def test_a_part_is_never_called_calibrated(slide: Slide) -> None:
    bundle = DarknessBundle(temperature=2.0)
    whole, part = ask(slide, bundle), ask(slide, bundle, scope=RegionOfInterest("region", (LEFT,)))
    assert whole.calibrated and not part.calibrated
    logits = np.array(list(part.student.logits.values()))
    np.testing.assert_allclose(list(part.student.probabilities.values()), np.exp(logits) / np.exp(logits).sum())
    assert not ask(slide, bundle, scope=RegionOfInterest(excluded=(CORNER,))).calibrated


def test_leaving_out_and_keeping_are_each_others_opposite(slide: Slide) -> None:
    out, kept = selected(RegionOfInterest(excluded=(LEFT,)), slide), selected(RegionOfInterest(included=(LEFT,)), slide)
    np.testing.assert_array_equal(out, ~kept)
    both = selected(RegionOfInterest("region", (LEFT,), excluded=(CORNER,)), slide)
    assert both.sum() == kept.sum() - selected(RegionOfInterest("region", (CORNER,)), slide).sum()


def test_hr_patches_follow_their_parents(slide: Slide) -> None:
    part = ask(slide, scope=RegionOfInterest("region", (LEFT,)), teacher=TeacherPatches.ALL)
    grid = part.grid
    np.testing.assert_array_equal(grid.hr_index // grid.lattice.n, grid.lr_index[grid.parent])
    assert part.teacher is not None and len(part.teacher.attention) == len(grid.hr_index)


def test_where_nothing_is_left_it_says_so(slide: Slide) -> None:
    nowhere = box_region(BoxLevel0(9000, 9000, 50, 50), "glass")
    for scope in (
        RegionOfInterest("region", (nowhere,)),
        RegionOfInterest(excluded=(box_region(BoxLevel0(-9, -9, 9999, 9999), "all"),)),
    ):
        with pytest.raises(TissueError) as caught:
            ask(slide, scope=scope)
        assert one_sentence(caught.value)
    with pytest.raises(TissueError, match=r"outside the slide.*x 9000 to 9050.*drawn on another slide"):
        ask(slide, scope=RegionOfInterest("region", (nowhere,)))
    with pytest.raises(ValueError, match="0 regions"):
        RegionOfInterest("region")


def test_what_was_seen_is_neither_read_nor_encoded_again(slide: Slide) -> None:
    bundle, cache = DarknessBundle(), EmbeddingCache()
    ground = find_tissue_grid(slide, bundle.card.plan, bundle.card.tissue)
    part = ask(slide, bundle, scope=RegionOfInterest("region", (LEFT,)), tissue_grid=ground, cache=cache)
    assert part.student.patches_encoded == len(part.grid.lr_index)
    whole = ask(slide, bundle, tissue_grid=ground, cache=cache)
    assert whole.student.patches_encoded == len(whole.grid.lr_index) - len(part.grid.lr_index)
    before = slide.pixels_decoded
    again = ask(slide, bundle, scope=RegionOfInterest(excluded=(CORNER,)), tissue_grid=ground, cache=cache)
    assert slide.pixels_decoded == before and again.student.patches_encoded == 0
    reference = ask(slide, bundle)
    np.testing.assert_allclose(whole.student.attention, reference.student.attention, atol=1e-6)
    assert whole.student.probabilities == pytest.approx(reference.student.probabilities, abs=1e-6)


def test_broken_off_work_is_kept(tmp_path: Path) -> None:
    slide = fake_slide(tmp_path, FakeSlide(speckled(2560, 1536), (1.0, 4.0), resolution(0.5)))
    bundle, cache = DarknessBundle(), EmbeddingCache()
    ground = find_tissue_grid(slide, bundle.card.plan, bundle.card.tissue)
    events = predict(slide, bundle, device=CPU, cache=cache, tissue_grid=ground)  # type: ignore[arg-type]  # a stand-in
    for event in events:
        if getattr(event, "unit", "") == "patches":
            break
    events.close()  # type: ignore[attr-defined]  # a generator
    assert 0 < len(cache) < len(ground.grid.lr_index)


def test_evidence_of_a_part_sums_to_its_logit(slide: Slide) -> None:
    bundle = DarknessBundle()
    part = ask(slide, bundle, scope=RegionOfInterest("region", (LEFT,)))
    logits = np.array(list(part.student.logits.values()))
    bias = bundle.student.mil.centred_bias.detach().numpy()
    np.testing.assert_allclose(part.student.evidence.sum(axis=0) + bias, logits - logits.mean(), atol=1e-4)


def test_words() -> None:
    assert WHOLE_SLIDE.is_whole_slide and WHOLE_SLIDE.text == "whole slide"
    scope = RegionOfInterest("region", (LEFT, CORNER), excluded=(CORNER,), edited=True)
    assert scope.text == "2 drawn regions, without 1 excluded, tissue edited" and not scope.is_whole_slide
    assert RegionOfInterest(included=(LEFT,)).files == {"keep": (LEFT,)}


def test_what_is_known_of_regions_and_their_files_is_in_the_answer(slide: Slide, tmp_path: Path) -> None:
    strip = [[10, 460], [1500, 460], [1500, 564], [10, 564], [10, 460]]
    features = [{"type": "Feature", "geometry": {"type": kind, "coordinates": corners}} for kind, corners in (
        ("Polygon", [strip]), ("LineString", strip), ("Polygon", [[*strip[:2], [None, 3]]]))]  # fmt: skip
    (tmp_path / "r.geojson").write_text(json.dumps(features))
    scope = read_scope({"roi": tmp_path / "r.geojson", "keep": None}, slide.bounds)
    *events, last = predict(slide, DarknessBundle(), device=CPU, scope=scope)  # type: ignore[arg-type]  # a stand-in
    told = [event.message for event in events if isinstance(event, Notice)]
    assert list(last.result.warnings) == told, "what is printed is what is stored"  # type: ignore[union-attr]
    assert told[0] == (
        "r.geojson: left out: 1 annotation without an area (points, lines), 1 annotation with corners that are not "
        "lists of numbers; 1 read"
    )
    assert told[1].startswith("the drawn region is too thin to fill half of a patch")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_visible_region_is_embedded_on_the_gpu(tmp_path: Path) -> None:
    from support.fake_slides import lively_bundle

    bundle = lively_bundle(tmp_path / "bundle")
    with fake_slide(tmp_path, FakeSlide(speckled(1536, 1024), (1.0, 4.0), resolution(0.5))) as slide:
        reference = ask(slide, bundle, scope=RegionOfInterest("view", (LEFT,)))
        torch.cuda.reset_peak_memory_stats()
        *_, last = predict(slide, bundle, device=torch.device("cuda"), scope=RegionOfInterest("view", (LEFT,)))
    assert torch.cuda.max_memory_allocated() > 0
    found: Prediction = last.result  # type: ignore[union-attr]  # the last event carries it
    assert found.student.probabilities == pytest.approx(reference.student.probabilities, abs=1e-3)
