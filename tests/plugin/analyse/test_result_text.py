"""Text of a result, compared with the numbers of the prediction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.inference.slide_limits import OperatingSide, PredictionSet, SlideLimits
from napari_lrmil.core.metrics.agreement import Agreement
from napari_lrmil.core.patching.regions import box_region
from napari_lrmil.core.patching.roi import WHOLE_SLIDE, RegionOfInterest
from napari_lrmil.plugin.analyse.result_text import ResultText
from support.fake_slides import DarknessBundle, FakeSlide, fake_slide, resolution, speckled

LEFT = RegionOfInterest("region", (box_region(BoxLevel0(0, 0, 700, 900), "left"),))


def ask(folder: Path, scope: RegionOfInterest = WHOLE_SLIDE, temperature: float | None = None) -> Prediction:
    with fake_slide(folder, FakeSlide(speckled(1536, 1024), (1.0, 4.0), resolution(0.5, 0.25))) as slide:
        bundle = DarknessBundle(temperature=temperature)
        *_, last = predict(slide, bundle, device=torch.device("cpu"), scope=scope)  # type: ignore[arg-type]  # a stand-in
    result: Prediction = last.result  # type: ignore[union-attr]  # the last event carries it
    return result


def test_under_the_cursor_is_the_patch_that_lies_there(tmp_path: Path) -> None:
    prediction = ask(tmp_path)
    result_text, student, lattice = ResultText(prediction), prediction.student, prediction.grid.lattice
    row = int(np.argmax(student.attention))
    x, y = (student.coords[row] + np.array(lattice.lr_cell) * (0.9, 0.1)) * (0.5, 0.25)
    assert result_text.row_at(x, y) == row
    text = result_text.text_at(x, y)
    assert f"rank 1 of {len(student.attention)}" in text and f"{student.evidence[row][0]:+.3f}" in text
    assert f"{student.attention[row] * len(student.attention):.2f} times" in text
    assert "no patch here" in result_text.text_at(-5, 10)


def test_evidence_and_bias_make_the_logit(tmp_path: Path) -> None:
    prediction = ask(tmp_path)
    name = prediction.classes[1]
    total, bias, logit = (
        float(word.strip(",:")) for word in ResultText(prediction).evidence_sum(name).split() if word[0] in "+-"
    )
    logits = np.array(list(prediction.student.logits.values()))
    assert total + bias == pytest.approx(logit, abs=0.011)
    assert logit == pytest.approx(logits[1] - logits.mean(), abs=0.006)


def test_it_says_what_kind_of_figures_they_are(tmp_path: Path) -> None:
    assert ResultText(ask(tmp_path)).trust == "Probabilities, not calibrated."
    assert "calibrated on validation slides" in ResultText(ask(tmp_path, temperature=2.0)).trust
    region = ResultText(ask(tmp_path, LEFT, temperature=2.0))
    assert region.trust == "Region score of the drawn region, uncalibrated."
    assert f"{len(region.prediction.grid.lr_index)} patches" in region.basis


def test_it_says_what_the_model_knows_about_its_limits(tmp_path: Path) -> None:
    prediction = ask(tmp_path)
    assert ResultText(prediction).limits == ""
    limits = SlideLimits(OperatingSide("lesion", 0.25, True), PredictionSet(0.9, ("normal", "lesion")))
    text = ResultText(replace(prediction, limits=limits)).limits
    assert text == "At or above the operating point of lesion, 0.250; set at 90 %: normal or lesion."
    differing = ResultText(replace(prediction, limits=replace(limits, predicted="normal"))).limits
    assert "0.250; the two rules differ: the highest probability says normal, the operating point says lesion; set" in (
        differing
    )


def test_agreement_is_a_sentence_and_nothing_without_a_teacher(tmp_path: Path) -> None:
    alone = ask(tmp_path)
    n = len(alone.grid.lr_index)
    compared = replace(alone, agreement=Agreement(0.5, 0.25, 0.375, n_patches=n - 1))
    assert ResultText(alone).agreement == ""
    assert ResultText(compared).agreement == (
        "Agreement of attention: rank correlation ρ 0.50 · top-10 % overlap 0.25 · JS divergence 0.38 · "
        f"over {n - 1} of {n} patches."
    )
