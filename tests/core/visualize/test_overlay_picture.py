"""``overlay.png``: panels, texts and scales in their places, within a bounded size, without matplotlib."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile
import torch
from PIL import Image, ImageDraw

from napari_lrmil.core.events import Finished
from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.patching.regions import box_region
from napari_lrmil.core.patching.roi import RegionOfInterest
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.visualize.colormaps import viridis
from napari_lrmil.core.visualize.overlay import ATTENTION_LEGEND, OPACITY, RESEARCH_USE, color_limits
from napari_lrmil.core.visualize.overlay_picture import (
    GAP,
    MARGIN,
    compose_overlay,
    draw_overlay,
    panel_size,
    read_panel,
    scale_ticks,
)
from support.fake_slides import DarknessBundle, FakeSlide, fake_slide, resolution, speckled

LARGEST_PX = 4096


def prediction_of(slide: Slide, teacher: str = "none") -> Prediction:
    *_, last = predict(slide, DarknessBundle(), device=torch.device("cpu"), teacher=TeacherPatches.parse(teacher))  # type: ignore[arg-type]
    assert isinstance(last, Finished)
    return last.result  # type: ignore[no-any-return]  # Finished carries anything


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets every text that is drawn."""
    lines: list[str] = []
    draw = ImageDraw.ImageDraw.text

    def record(self: ImageDraw.ImageDraw, xy: object, text: str, *args: object, **kwargs: object) -> None:
        lines.append(text)
        draw(self, xy, text, *args, **kwargs)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return lines


@pytest.mark.parametrize("teacher", ["none", "all"])
def test_the_picture_is_written_whole_and_has_a_panel_for_each_network(tmp_path: Path, teacher: str) -> None:
    with fake_slide(tmp_path, FakeSlide(speckled(1300, 800), (1.0, 4.0), resolution(0.5, 0.4))) as slide:
        prediction = prediction_of(slide, teacher)
        draw_overlay(tmp_path / "out" / "overlay.png", slide, prediction)
        composed = np.asarray(compose_overlay(slide, prediction))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["overlay.png"]
    with Image.open(tmp_path / "out" / "overlay.png") as picture:
        assert picture.format == "PNG" and picture.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(picture), composed)
    panels = {"none": 2, "all": 3}[teacher]
    width, height = panel_size(1300, 800, 1500 // panels)
    frames = np.flatnonzero((composed == 0).all(axis=2).sum(axis=0) >= height)
    starts = [MARGIN + i * (width + GAP) for i in range(panels)]
    edges = {edge for x in starts for edge in (x - 1, x + width)}
    assert edges <= set(frames.tolist()), "each panel has its frame"


def test_the_picture_says_research_use_and_whether_it_is_calibrated(tmp_path: Path, texts: list[str]) -> None:
    with fake_slide(tmp_path, FakeSlide(speckled(1300, 800), (1.0, 4.0), resolution(0.5))) as slide:
        prediction = replace(prediction_of(slide, "all"), warnings=("the first warning", "the second"))
        compose_overlay(slide, prediction)
    everything = "\n".join(texts)
    assert f"{RESEARCH_USE} Probabilities not calibrated." in texts
    assert "the first warning" in texts and "the second" in texts
    assert f"lesion {prediction.student.probabilities['lesion']:.3f}" in everything
    assert "Student (LR)" in everything and "Teacher (HR)" in everything and "100 µm" in texts
    assert "Where the model looked (attention) · darkness" in texts
    assert ATTENTION_LEGEND in texts
    limits = color_limits([n for n in (prediction.student, prediction.teacher) if n is not None])
    assert {text for _, text in scale_ticks(*limits)} <= set(texts)


def test_a_region_score_is_called_that_and_its_region_is_outlined(tmp_path: Path, texts: list[str]) -> None:
    scope = RegionOfInterest("region", (box_region(BoxLevel0(300.0, 200.0, 500.0, 400.0), "part"),))
    with fake_slide(tmp_path, FakeSlide(speckled(1300, 800), (1.0, 4.0), resolution(0.5))) as slide:
        prediction = prediction_of(slide)
        without = np.asarray(compose_overlay(slide, prediction)).astype(int)
        outlined = np.asarray(compose_overlay(slide, replace(prediction, scope=scope))).astype(int)
    assert f"{RESEARCH_USE} Region score, uncalibrated." in texts
    width, _ = panel_size(1300, 800, 750)
    columns = np.flatnonzero((outlined != without)[: -4 * GAP].any(axis=(0, 2)))
    scale = width / 1300
    for i in range(2):  # in both panels
        left = MARGIN + i * (width + GAP)
        inside = columns[(columns >= left) & (columns < left + width)] - left
        np.testing.assert_allclose((inside.min(), inside.max()), (300 * scale, 800 * scale), atol=4)


def test_names_are_printed_as_they_are(tmp_path: Path, texts: list[str]) -> None:
    """Not as a formula: matplotlib would print $x^2$ as one, and fail on a brace that is not closed."""
    name = r"a $x^2$ {_b}$ tüple"
    with fake_slide(tmp_path, FakeSlide(speckled(1300, 800), (1.0, 4.0), resolution(0.5))) as slide:
        prediction = prediction_of(slide)
        values = {name: 0.25, "other": 0.75}
        compose_overlay(slide, replace(prediction, student=replace(prediction.student, probabilities=values)))
    assert any(name in text for text in texts)


def test_the_panel_shows_the_scanned_part_where_its_box_says(tmp_path: Path) -> None:
    """The dark square lies where the box of the panel puts it, also where the scanned part begins between pixels."""
    base = speckled(3400, 2900)
    base[217 + 1330 : 217 + 1600, 333 + 520 : 333 + 920] = (10, 0, 10)
    names = {"bounds-x": "333", "bounds-y": "217", "bounds-width": "2901", "bounds-height": "2603"}
    properties = resolution(0.5) | {f"openslide.{k}": v for k, v in names.items()}
    with fake_slide(tmp_path, FakeSlide(base, properties=properties)) as slide:
        pixels, box = read_panel(slide, 700)
    assert pixels.shape[:2][::-1] == panel_size(2901, 2603, 700)
    assert abs(box.x - 333) < 8 and abs(box.y - 217) < 8
    assert abs(box.width - 2901) < 8 and abs(box.height - 2603) < 8
    rows, columns = np.nonzero(pixels.max(axis=2) < 60)
    across, down = box.width / pixels.shape[1], box.height / pixels.shape[0]
    span = (columns.min() * across + box.x, (columns.max() + 1) * across + box.x)
    np.testing.assert_allclose(span, (333 + 520, 333 + 920), atol=2 * across)
    span = (rows.min() * down + box.y, (rows.max() + 1) * down + box.y)
    np.testing.assert_allclose(span, (217 + 1330, 217 + 1600), atol=2 * down)


def test_the_thumbnail_of_a_single_level_slide_is_read_in_bounded_blocks(tmp_path: Path) -> None:
    """A single-level scan of 100,000 x 80,000 px in one read would be 32 GB."""
    fake = FakeSlide(speckled(4500, 2300), properties=resolution(0.5))
    with fake_slide(tmp_path, fake) as slide:
        prediction = prediction_of(slide)
        fake.reads.clear()
        draw_overlay(tmp_path / "a.png", slide, prediction)
    assert max(width * height for _, _, (width, height) in fake.reads) <= 2100 * 2100


@pytest.mark.parametrize("size", [(5000, 260), (260, 5000), (270, 270)])
def test_the_picture_is_bounded_whatever_the_slide_and_its_texts(
    tmp_path: Path, texts: list[str], size: tuple[int, int]
) -> None:
    with fake_slide(tmp_path, FakeSlide(speckled(*size), properties=resolution(0.5))) as slide:
        prediction = prediction_of(slide, "all")
        many = {f"a class with a long name {i}": 1 / 400 for i in range(400)}
        prediction = replace(
            prediction,
            student=replace(prediction.student, probabilities=many),
            bundle="name" * 300,
            warnings=("a word " * 5000, "last"),
        )
        picture = compose_overlay(slide, prediction)
    assert picture.width <= LARGEST_PX and picture.height <= LARGEST_PX
    assert sum("the rest is in prediction.json" in text for text in texts) >= 2, "what is left out is said"
    border = np.asarray(picture)[:, [0, 1, -2, -1]]
    assert (border == 255).all(), "nothing runs into the edges"


def test_the_legend_has_the_colours_of_the_map_from_low_to_high_and_a_pointed_end(tmp_path: Path) -> None:
    with fake_slide(tmp_path, FakeSlide(speckled(1300, 800), (1.0, 4.0), resolution(0.5))) as slide:
        legend = np.asarray(compose_overlay(slide, prediction_of(slide)))[:, -160:].astype(float)
    table = OPACITY * viridis().astype(float) + (1 - OPACITY) * 255  # as the map looks over glass
    lines = [np.flatnonzero((np.abs(legend - table[i]) <= 2).all(axis=2).any(axis=1)).mean() for i in (8, 128, 255)]
    assert lines[0] > lines[1] > lines[2], "the lowest is at the bottom"
    widths = [int(row.sum()) for row in (np.abs(legend - table[255]) <= 1).all(axis=2) if row.any()]
    assert widths[0] <= 4 and max(widths) >= 20, "it narrows to a point"


@pytest.mark.parametrize(
    ("high", "expected"),
    [
        (2.0, ["0.00", "0.25", "0.50", "0.75", "1.00", "1.25", "1.50", "1.75", "2.00"]),
        (4.1, ["0", "1", "2", "3", "4"]),
        (3.7, ["0.0", "0.5", "1.0", "1.5", "2.0", "2.5", "3.0", "3.5"]),
        (19.9, ["0.0", "2.5", "5.0", "7.5", "10.0", "12.5", "15.0", "17.5"]),
        (160.0, ["0", "20", "40", "60", "80", "100", "120", "140", "160"]),
    ],
)
def test_ticks_are_round_numbers(high: float, expected: list[str]) -> None:
    ticks = scale_ticks(0.0, high)
    assert [text for _, text in ticks] == expected
    np.testing.assert_allclose([value for value, _ in ticks], [float(text) for text in expected])


def test_pictures_and_results_load_neither_matplotlib_nor_scipy() -> None:
    code = """
import sys
import napari_lrmil.core.results.writer, napari_lrmil.core.visualize.overlay_picture as picture
picture.load_font(13), picture.viridis_colors(picture.np.ones(3))
print([name for name in ("matplotlib", "scipy", "skimage", "pandas") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _peak_mb(work: Callable[[], object]) -> float:
    """Return by how many MB the memory of this process rises at most while something is done."""
    Path("/proc/self/clear_refs").write_text("5")  # begin to measure the peak anew
    before = psutil.Process().memory_info().rss
    work()
    status = Path("/proc/self/status").read_text()
    peak = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert peak is not None
    return (int(peak[1]) * 1024 - before) / 1e6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's own figure of the peak")
@pytest.mark.parametrize(("width", "height"), [(200_000, 1_000), (512, 150_000), (20_000, 20_000)])
def test_the_picture_of_a_slide_of_any_shape_takes_little_memory(tmp_path: Path, width: int, height: int) -> None:
    """Without a pyramid, so that every pixel of a level of up to 1.2 GB is read."""
    tile = speckled(512, 512)
    count = -(-width // 512) * -(-height // 512)
    path = tmp_path / "long.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(
            itertools.repeat(tile, count), shape=(height, width, 3), dtype=np.uint8, tile=(512, 512),
            photometric="rgb", compression="jpeg", resolution=(20_000, 20_000), resolutionunit="CENTIMETER",
        )  # fmt: skip
    with fake_slide(tmp_path, FakeSlide(speckled(1300, 800), (1.0, 4.0), resolution(0.5))) as small:
        prediction = prediction_of(small, "all")  # its place on the slide is no matter here
    with Slide(path) as slide:
        peak = _peak_mb(lambda: draw_overlay(tmp_path / "overlay.png", slide, prediction))
    with Image.open(tmp_path / "overlay.png") as picture:
        assert max(picture.size) <= LARGEST_PX
    assert peak < 300
