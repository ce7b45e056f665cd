"""One slide on all rungs: each answers as it does alone, the mask is made once, and attention is compared by place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from napari_lrmil.core.events import Finished, Progress
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.ladder.attention import compare_attention
from napari_lrmil.core.ladder.climb import Climber, ClimbOptions, MissingRung, RungResult
from napari_lrmil.core.ladder.rungs import Ladder, open_ladder
from napari_lrmil.core.ladder.schema import RungEntry
from napari_lrmil.core.ladder.table import build_ladder_file, describe_changes
from napari_lrmil.core.metrics.agreement import measure_agreement
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.patching.grid import find_tissue_grid, place_tissue
from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide
from napari_lrmil.core.slides.slide import Slide
from support.ladders import ladder_bundles


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    folder = tmp_path_factory.mktemp("ladder")
    ladder_bundles(folder, 2.0, 1.0)
    return open_ladder([folder], teacher=True)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slide]:
    folder = tmp_path_factory.mktemp("slide")
    write_slide(folder, PhantomSlide("first", LESION, 1, (1400, 1100)))
    with Slide(next(folder.glob("first.tif*"))) as opened:
        yield opened


def climb(slide: Slide, ladder: Ladder) -> list[RungResult | MissingRung]:
    """Read all rungs of a slide."""
    climber, outcomes = Climber(slide, ladder, ClimbOptions("cpu"), 0.25), []
    for rung in ladder.rungs:
        events, stages = climber.try_read(rung), list[str]()
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                outcomes.append(end.value)
                break
            stages += [event.stage] if isinstance(event, Progress) else []
        assert all(stage.startswith(f"{rung.label} · ") for stage in stages)
    return outcomes


def alone(slide: Slide, bundle: Bundle, patches: TeacherPatches = TeacherPatches.NONE) -> Prediction:
    *_, last = predict(slide, bundle, device="cpu", teacher=patches)
    assert isinstance(last, Finished)
    result: Prediction = last.result
    return result


def test_each_rung_answers_as_it_does_alone(slide: Slide, ladder: Ladder) -> None:
    coarse, fine, teacher = climb(slide, ladder)
    for result in (coarse, fine):
        assert isinstance(result, RungResult)
        expected = alone(slide, result.rung.bundle)
        assert result.network.probabilities == expected.student.probabilities
        assert np.array_equal(result.network.attention, expected.student.attention)
        assert result.network.pixels_decoded == expected.student.pixels_decoded == result.figures.alone.pixels
        assert result.network.seconds["open"] == 0.25
    assert isinstance(teacher, RungResult)
    expected = alone(slide, teacher.rung.bundle, TeacherPatches.ALL)
    assert expected.teacher is not None
    assert teacher.network.probabilities == expected.teacher.probabilities
    assert teacher.network.pixels_decoded == expected.teacher.pixels_decoded
    assert teacher.prediction.agreement == expected.agreement
    assert isinstance(fine, RungResult) and teacher.prediction.student is fine.prediction.student


def test_the_mask_is_made_once_and_is_that_of_each_model(slide: Slide, ladder: Ladder) -> None:
    results = [outcome for outcome in climb(slide, ladder) if isinstance(outcome, RungResult)]
    assert [result.figures.has_new_mask for result in results] == [True, False, False]
    first, second = (find_tissue_grid(slide, bundle.card.plan).tissue for bundle in ladder.bundles)
    moved = place_tissue(first, second.lattice)
    assert np.array_equal(moved.mask, second.mask) and moved.lattice == second.lattice
    assert np.array_equal(place_tissue(second, first.lattice).mask, first.mask)
    with pytest.raises(ValueError, match="are not those of"):
        place_tissue(first, replace(first.lattice, cell=(7, 7)))


def test_attention_is_compared_by_place(slide: Slide, ladder: Ladder) -> None:
    """With its own teacher a student agrees as `measure_agreement` says, over other patches too if they nest."""
    coarse, fine, teacher = climb(slide, ladder)
    assert isinstance(coarse, RungResult) and isinstance(fine, RungResult) and isinstance(teacher, RungResult)
    for result in (coarse, fine):
        agreement = compare_attention(result.network, teacher.network)
        expected = measure_agreement(result.prediction.grid, result.network.attention, teacher.network.attention)
        assert agreement is not None and agreement.n_patches == expected.n_patches
        assert agreement.spearman == pytest.approx(expected.spearman, abs=1e-12)
        assert agreement.js_divergence == pytest.approx(expected.js_divergence, abs=1e-12)
    same = compare_attention(fine.network, fine.network)
    assert same is not None and same.js_divergence == 0 and same.jaccard_top10 == 1
    size = coarse.network.patch_level0[0] - 1
    assert compare_attention(replace(coarse.network, patch_level0=(size, size)), fine.network) is None


def test_a_slide_that_is_too_coarse_for_a_rung_says_so(ladder: Ladder, slide: Slide) -> None:
    """At 0.8 µm the teacher of 0.5 µm cannot read it."""
    with Slide(slide.path, mpp=0.8) as coarse:
        *read, teacher = climb(coarse, ladder)
        assert all(isinstance(outcome, RungResult) for outcome in read)
        assert isinstance(teacher, MissingRung) and teacher.reason.startswith("the slide has 0.8 µm per pixel")
        file = build_ladder_file(coarse, ladder, [*read, teacher], "")
    assert file.reference == "10x"
    states = {entry.label: entry.state for entry in file.rungs}
    assert states == {"2.5x": "no model", "5x": "read", "10x": "read", "20x teacher": "missing"}
    assert file.rungs[-1].reason == teacher.reason


def entries(*answers: str) -> list[RungEntry]:
    """Return entries of 2.5x, 5x, 10x and the teacher."""
    names = [("2.5x", "student"), ("5x", "student"), ("10x", "student"), ("20x", "teacher")]
    return [
        RungEntry(magnification=name, mpp=1, network=network, state="read", predicted=answer)  # type: ignore[arg-type]
        for (name, network), answer in zip(names, answers, strict=True)
    ]


def test_where_the_answer_changes_is_a_sentence() -> None:
    assert describe_changes(entries("a", "a", "a", "a")) == "a at every resolution from 2.5x to 20x teacher"
    text = describe_changes(entries("b", "b", "a", "a"))
    assert text == "the answer changes between 5x and 10x: b at 5x, a at 10x and finer"
    text = describe_changes(entries("a", "a", "b", "a"))
    assert text == "the answer changes between 10x and 20x teacher: b at 10x, a at 20x teacher (and at 2.5x, 5x)"
    assert describe_changes(entries("a", "a", "a", "a")[-1:]).endswith("no other resolution could be read")
