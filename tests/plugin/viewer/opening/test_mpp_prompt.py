"""Slides without a resolution: the user is asked, and the answer is remembered for the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.plugin.viewer.opening.mpp_prompt import MppAnswer, resolve_mpp
from support.fake_slides import FakeSlide, fake_slide, resolution, speckled


class FakeUser:
    """User who always gives the same answer; `slides` are those that were asked about."""

    def __init__(self, answer: MppAnswer | None) -> None:
        self.answer, self.slides = answer, []  # type: ignore[var-annotated]

    def __call__(self, slide: Slide) -> MppAnswer | None:
        self.slides.append(slide.name)
        return self.answer


def _bare(folder: Path, name: str = "bare.svs", hash_of: str = "a") -> Slide:
    return fake_slide(folder, FakeSlide(speckled(90, 70), (1.0,), {"openslide.quickhash-1": hash_of * 64}), name)


def test_a_slide_that_knows_is_not_asked_about(tmp_path: Path) -> None:
    ask = FakeUser(MppAnswer(0.3))
    assert resolve_mpp(fake_slide(tmp_path, FakeSlide(speckled(90, 70), (1.0,), resolution(0.5))), ask) == 0.5
    assert ask.slides == []


def test_an_answer_is_remembered_for_that_file_whatever_its_name(tmp_path: Path) -> None:
    memory, ask = SettingsStore(tmp_path / "config"), FakeUser(MppAnswer(0.27))
    assert resolve_mpp(_bare(tmp_path), ask, memory) == 0.27
    again = SettingsStore(memory.path.parent)
    assert resolve_mpp(_bare(tmp_path, "renamed.svs"), ask, again) == 0.27
    assert ask.slides == ["bare"]
    assert resolve_mpp(_bare(tmp_path, "other.svs", "b"), ask, again) == 0.27
    assert ask.slides == ["bare", "other"]


def test_an_answer_that_shall_not_be_remembered_is_not(tmp_path: Path) -> None:
    memory = SettingsStore(tmp_path)
    assert resolve_mpp(_bare(tmp_path), FakeUser(MppAnswer(0.27, remember=False)), memory) == 0.27
    assert memory.remembered_mpp("a" * 32) is None and not memory.path.exists()


def test_no_answer_is_none_and_is_not_remembered(tmp_path: Path) -> None:
    memory = SettingsStore(tmp_path)
    assert resolve_mpp(_bare(tmp_path), FakeUser(None), memory) is None
    assert not memory.path.exists()


@pytest.mark.parametrize(
    "text", ["{", "[1]", "", json.dumps({"mpp": {"a" * 32: "half"}}), json.dumps({"mpp": {"a" * 32: -1}})]
)
def test_a_memory_that_makes_no_sense_asks_again(tmp_path: Path, text: str) -> None:
    memory = SettingsStore(tmp_path)
    memory.path.write_text(text)
    assert resolve_mpp(_bare(tmp_path), FakeUser(MppAnswer(0.3)), memory) == 0.3
    assert memory.remembered_mpp("a" * 32) == 0.3


@pytest.mark.parametrize("mpp", [0.0, -0.5, 1e5, float("nan")])
def test_an_answer_has_to_be_the_resolution_of_a_slide(mpp: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        MppAnswer(mpp)
