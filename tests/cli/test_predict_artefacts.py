"""``predict --exclude-artefacts``: artefacts are told, and left out only if that is wanted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.patching.tissue import TissueConfig
from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide
from support.networks import untrained_bundle

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    write_slide(folder, PhantomSlide("pen", LESION, 1, (2048, 1536)), variants=["pen"])
    write_slide(folder, PhantomSlide("clean", LESION, 1, (2048, 1536)))
    return folder


def predict(call: Call, slide: Path, bundle: Bundle, out: Path, *more: object) -> tuple[dict[str, Any], str, str]:
    words = ("predict", slide, "--bundle", bundle.path, "--out", out, "--device", "cpu", "--no-overlay", *more)
    code, printed, error = call(*words)
    assert code == 0, error
    return json.loads((out / slide.stem / "prediction.json").read_text()), printed, error


def test_a_pen_is_told_and_left_out_on_request(call: Call, slides: Path, tmp_path: Path) -> None:
    bundle, out = untrained_bundle(tmp_path / "bundle", lr_patch_px=64, hr_patch_px=64), tmp_path / "out"
    plain, _, error = predict(call, slides / "pen.tif", bundle, out)
    assert not plain["artefacts"]["excluded"] and plain["artefacts"]["shares"]["pen"] > 0.05
    assert "which were read as tissue: pen on" in error and any("artefacts" in text for text in plain["warnings"])
    assert "(already there)" in predict(call, slides / "pen.tif", bundle, out)[1]
    excluded, printed, error = predict(call, slides / "pen.tif", bundle, out, "--exclude-artefacts", "--report")
    assert "already there" not in printed and "which were left out" in error
    assert excluded["artefacts"] == plain["artefacts"] | {"excluded": True}
    assert excluded["n_hr_patches"] < plain["n_hr_patches"]
    assert "--exclude-artefacts" in (out / "pen" / "report.html").read_text()
    assert "(already there)" in predict(call, slides / "pen.tif", bundle, out, "--exclude-artefacts")[1]


def test_a_clean_slide_is_answered_alike(call: Call, slides: Path, tmp_path: Path) -> None:
    bundle = untrained_bundle(tmp_path / "bundle")
    plain, *_ = predict(call, slides / "clean.tif", bundle, tmp_path / "a")
    assert "artefacts" not in plain
    excluded, *_ = predict(call, slides / "clean.tif", bundle, tmp_path / "b", "--exclude-artefacts")
    assert excluded["artefacts"] == {"shares": {}, "excluded": True}
    assert excluded["probabilities"] == plain["probabilities"] and excluded["n_patches"] == plain["n_patches"]
    again = predict(call, slides / "clean.tif", bundle, tmp_path / "b", "--exclude-artefacts")[1]
    assert "(already there)" in again


def test_a_bundle_can_ask_for_it(call: Call, slides: Path, tmp_path: Path) -> None:
    """The key is in the card only if it is set, so that bundles of earlier versions keep their hash."""
    plain = untrained_bundle(tmp_path / "plain")
    asking = untrained_bundle(tmp_path / "asking", tissue=TissueConfig(exclude_artefacts=True))
    cards = [json.loads((bundle.path / "lrmil.json").read_text()) for bundle in (plain, asking)]
    assert "exclude_artefacts" not in cards[0]["tissue"] and cards[1]["tissue"]["exclude_artefacts"] is True
    assert plain.sha256 != asking.sha256
    result, *_ = predict(call, slides / "pen.tif", asking, tmp_path / "out")
    assert result["artefacts"]["excluded"]


def test_a_mask_of_ones_own_is_taken_as_it_is(call: Call, slides: Path, tmp_path: Path) -> None:
    bundle = untrained_bundle(tmp_path / "bundle")
    words = ("predict", slides / "clean.tif", "--bundle", bundle.path, "--out", tmp_path / "out")
    code, _, error = call(*words, "--tissue", tmp_path / "mask.png", "--exclude-artefacts")
    assert code == 2 and "leave --exclude-artefacts out" in error
