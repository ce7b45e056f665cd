"""Slide report: complete, with the state of calibration, self-contained, and without the label image."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from napari_lrmil import __version__
from napari_lrmil.core.events import Finished
from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.inference.slide_limits import OperatingSide, PredictionSet, SlideLimits
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.models.cohort_distance import CohortDistance
from napari_lrmil.core.patching.regions import box_region
from napari_lrmil.core.patching.roi import WHOLE_SLIDE, RegionOfInterest
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.visualize.overlay import RESEARCH_USE
from napari_lrmil.core.visualize.slide_report import (
    ReportRequest,
    format_significant,
    probability_margin,
    write_slide_report,
)
from napari_lrmil.core.visualize.top_patches import PATCH_MAX_PX, read_patch, select_top_and_bottom
from support.fake_slides import DarknessBundle, FakeHandle, FakeSlide, fake_slide, resolution, speckled

LOADING = {"script", "link", "iframe", "object", "embed", "audio", "video", "source", "base"}


@dataclass
class Page(HTMLParser):
    """Content of a page: tags, attributes, picture sources, and the visible text."""

    html: str
    tags: Counter[str] = field(default_factory=Counter)
    sources: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str]] = field(default_factory=list)
    strings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._style = False
        self.feed(self.html)
        self.text = " ".join(" ".join(self.strings).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self._style = tag == "style"
        self.sources += [v or "" for k, v in attrs if k == "src"]
        self.attributes += [(k, v or "") for k, v in attrs if k != "src"]

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.strings.append(data)

    @property
    def pictures(self) -> list[Image.Image]:
        return [Image.open(io.BytesIO(base64.b64decode(s.partition(",")[2]))) for s in self.sources]


class Untouchable(dict[str, Any]):
    """Associated images that may be listed but not read."""

    def __iter__(self) -> Iterator[str]:
        return iter(("label", "macro"))

    def __getitem__(self, key: str) -> Any:
        raise AssertionError(f"the report read the {key} image")

    get = items = values = __getitem__  # type: ignore[assignment]  # reading in any way


class WithLabel(FakeSlide):
    """A slide with a label."""

    def __call__(self, path: Path) -> FakeHandle:
        handle = super().__call__(path)
        handle.associated_images = Untouchable()
        return handle


def opened(folder: Path, name: str = "s 1.svs") -> Slide:
    return fake_slide(folder, WithLabel(speckled(1300, 800), (1.0, 4.0), resolution(0.5, 0.4)), name)


def predicted(slide: Slide, teacher: str = "none", **card: Any) -> Prediction:
    *_, last = predict(slide, DarknessBundle(**card), device=torch.device("cpu"), teacher=TeacherPatches.parse(teacher))  # type: ignore[arg-type]
    assert isinstance(last, Finished)
    return last.result  # type: ignore[no-any-return]  # Finished carries anything


def page_of(folder: Path, slide: Slide, prediction: Prediction, command: str = "napari-lrmil predict x") -> Page:
    path = folder / "out" / "report.html"
    write_slide_report(path, slide, prediction, ReportRequest(command, 0.5, 3))
    assert [p.name for p in path.parent.iterdir()] == ["report.html"], "no other and no temporary file"
    return Page(path.read_text(encoding="utf-8"))


def test_nothing_is_loaded_from_elsewhere_and_no_label_is_read(tmp_path: Path) -> None:
    with opened(tmp_path) as slide:
        assert slide.associated == ("label", "macro")
        page = page_of(tmp_path, slide, predicted(slide, "all"))
    assert not LOADING & set(page.tags)
    assert page.sources and all(s.startswith("data:image/") for s in page.sources)
    assert "url(" not in page.html and "@import" not in page.html
    assert not [a for a in page.attributes if a[0].startswith("on") or "://" in a[1]]


@pytest.mark.parametrize(("teacher", "panels"), [("none", 2), ("all", 3)])
def test_every_picture_opens_and_patches_are_bounded(tmp_path: Path, teacher: str, panels: int) -> None:
    with opened(tmp_path) as slide:
        prediction = predicted(slide, teacher)
        page = page_of(tmp_path, slide, prediction)
        gallery = select_top_and_bottom(prediction, 3)
        lr = read_patch(slide, prediction, gallery[0].row, mpp=2.0)
    pictures = page.pictures
    assert len(pictures) == panels + 2 * len(gallery)
    patches = pictures[panels:]
    assert max(max(p.size) for p in patches) <= PATCH_MAX_PX
    assert all(hr.width > 3 * lr.width for lr, hr in zip(patches[::2], patches[1::2], strict=True))
    np.testing.assert_array_equal(np.asarray(patches[0]), lr, "the pixels that the student read, bit by bit")


def test_the_report_has_every_figure_of_the_prediction(tmp_path: Path) -> None:
    with opened(tmp_path) as slide:
        prediction = replace(predicted(slide), warnings=("the colour is far from the training slides",))
        page = page_of(tmp_path, slide, prediction)
        first = select_top_and_bottom(prediction, 3)[0]
    assert page.text.index(RESEARCH_USE) < page.text.index("Whole slide"), "the notice comes first"
    probabilities = prediction.student.probabilities
    expected = (
        "s 1", "the colour is far from the training slides", "lesion", "normal", "Probabilities not calibrated",
        f"Margin {abs(probabilities['lesion'] - probabilities['normal']):.3f}", "would read (HR) "
        f"{len(prediction.grid.hr_index)} patches", f"Patches read (LR) {len(prediction.grid.lr_index)}",
        f"Rank {first.rank}", f"centre x {first.centre_um[0]:.0f}, y {first.centre_um[1]:.0f} µm",
        __version__, "darkness", "d" * 64, "f" * 32, "0.5 × 0.4 µm per pixel, source: openslide", "cpu",
        "opening the slide", "encoding", "napari-lrmil predict x",
    )  # fmt: skip
    assert not [t for t in expected if t not in page.text]
    assert "teacher look" not in page.text, "no teacher ran"


def test_the_report_has_the_limits_that_the_model_states(tmp_path: Path) -> None:
    """Side, set and distance in words. What one model lacks is named; of a region nothing is said."""
    side, classes = OperatingSide("lesion", 0.25, True), PredictionSet(0.9, ("normal", "lesion"))
    with opened(tmp_path) as slide:
        plain = predicted(slide)
        full = replace(plain, limits=SlideLimits(side, classes), cohort_distance=CohortDistance(1.25, 0.75, 30))
        page = page_of(tmp_path, slide, full).text
        assert "operating point of lesion, 0.250: counts as lesion" in page
        assert "Set of classes at 90 % normal or lesion" in page
        assert "farther from the training slides than 75 % of 30 slides of their kind (1.2 times" in page
        assert "not stated" not in page and "two rules" not in page
        differing = replace(full, limits=replace(full.limits, predicted="normal"))
        rules = "the two rules differ: the highest probability says normal, the operating point says lesion"
        assert f"counts as lesion; {rules}" in page_of(tmp_path, slide, differing).text
        below = replace(full, limits=SlideLimits(replace(side, reached=False)), cohort_distance=None)
        page = page_of(tmp_path, slide, below).text
        assert "counts as not lesion" in page and page.count("not stated by this model") == 2
        assert "states no operating point, no set" in page_of(tmp_path, slide, plain).text
        caution = "the operating point is uncertain: only 1 lesion and 2 other in validation chose it"
        page = page_of(tmp_path, slide, replace(plain, limits=SlideLimits(side, cautions=(caution,)))).text
        assert f"Caution: {caution}." in page
        region = RegionOfInterest("region", (REGION,))
        assert "trusted" not in page_of(tmp_path, slide, replace(plain, scope=region)).text


def test_evidence_and_bias_add_up_to_the_centred_logit(tmp_path: Path) -> None:
    with opened(tmp_path) as slide:
        prediction = predicted(slide)
        page = page_of(tmp_path, slide, prediction)
    logits = prediction.student.logits
    centred = logits["lesion"] - sum(logits.values()) / 2
    bias = (-0.4 - 0.3) / 2  # of the stand-in's classifier
    evidence = f"{centred - bias:+.3f} {bias:+.3f} {centred:+.3f}".replace("-", "−")
    assert f"lesion {evidence}" in page.text


def test_the_report_has_the_teacher_and_the_agreement(tmp_path: Path) -> None:
    with opened(tmp_path) as slide:
        prediction = predicted(slide, "all")
        page = page_of(tmp_path, slide, prediction)
    agreement, teacher = prediction.agreement, prediction.teacher
    assert agreement is not None and agreement.spearman is not None and teacher is not None
    assert f"(1: the same order) {agreement.spearman:.2f}" in page.text
    assert f"(1: the same patches) {agreement.jaccard_top10:.2f}" in page.text
    assert f"(0: the same, 1: nothing shared) {agreement.js_divergence:.2f}" in page.text
    probabilities = " ".join(
        f"{c} {p:.3f}" for c, p in sorted(teacher.probabilities.items(), key=lambda item: -item[1])
    )
    assert f"Teacher (HR): probability {probabilities}" in page.text, "the most probable first"
    assert "The teacher read (HR)" in page.text and "× average, teacher" in page.text


REGION = box_region(BoxLevel0(0, 0, 500, 400), "drawn")


@pytest.mark.parametrize(
    ("scope", "temperature", "expected"),
    [
        (WHOLE_SLIDE, None, "Probabilities not calibrated."),
        (WHOLE_SLIDE, 1.7, "Probabilities calibrated on validation slides."),
        (RegionOfInterest("region", (REGION, REGION)), 1.7, "Region score, uncalibrated."),
        (RegionOfInterest("view", (REGION,)), None, "Region score, uncalibrated."),
        (RegionOfInterest(excluded=(REGION,)), 1.7, "Region score, uncalibrated."),
    ],
)
def test_the_report_states_the_calibration(
    tmp_path: Path, scope: RegionOfInterest, temperature: float | None, expected: str
) -> None:
    """The temperature was fitted on whole slides and does not hold for a region."""
    with opened(tmp_path) as slide:
        page = page_of(tmp_path, slide, replace(predicted(slide, temperature=temperature), scope=scope))
    assert expected in page.text
    assert ("Region: " in page.text) == (not scope.is_whole_slide) and (
        "Whole slide" in page.text
    ) == scope.is_whole_slide
    assert ("calibrated on validation" in page.text) == ("calibrated on" in expected)
    if not scope.is_whole_slide:
        assert f"Region: {scope.text}" in page.text and "Highest region score" in page.text


def test_names_are_text_whatever_is_in_them(tmp_path: Path) -> None:
    with opened(tmp_path, "<script>alert(1)<img src=x>.svs") as slide:
        prediction = predicted(slide)
        hostile = replace(prediction, bundle="<b onload=x>", warnings=("<iframe src='http://x'>",))
        page = page_of(tmp_path, slide, hostile, "predict '<script>' && \"x\"")
    assert not LOADING & set(page.tags) and page.tags["b"] == 4, "the four tiles"
    assert all(s.startswith("data:") for s in page.sources)
    assert "<script>alert(1)<img src=x>" in page.text and "predict '<script>' && \"x\"" in page.text


def test_a_slide_of_one_patch_has_nothing_at_the_bottom(tmp_path: Path) -> None:
    fake = FakeSlide(speckled(250, 310), (1.0,), resolution(0.5, 0.4))
    with fake_slide(tmp_path, fake) as slide:
        page = page_of(tmp_path, slide, predicted(slide, "all"))
    assert "Most attended" in page.text and "Least attended" not in page.text
    assert "not defined here" in page.text, "a rank correlation of one patch"


def test_figures_never_say_more_than_they_know() -> None:
    assert [format_significant(v) for v in (0.0, 12.345, 1.9349, 0.01234, 123.4)] == [
        "0.00", "12.3", "1.93", "0.0123", "123"
    ]  # fmt: skip
    assert (
        probability_margin({"a": 0.2, "b": 0.7, "c": 0.1}) == pytest.approx(0.5)
        and probability_margin({"a": 1.0}) == 1.0
    )
