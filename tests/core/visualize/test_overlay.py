"""Heatmaps are aligned with the patches; exported pictures carry title, warnings and the research-use line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from napari_lrmil.core.events import Finished
from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import NetworkPrediction, Prediction
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.patching.regions import box_region
from napari_lrmil.core.patching.roi import RegionOfInterest
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.visualize.overlay import (
    RESEARCH_USE,
    Heatmap,
    blend_heatmap,
    color_limits,
    draw_overlay,
    make_heatmap,
)
from support.fake_slides import DarknessBundle, FakeSlide, fake_slide, resolution, speckled


def reading(coords: list[list[int]], attention: list[float], size: tuple[int, int] = (256, 320)) -> NetworkPrediction:
    return NetworkPrediction(
        coords=np.array(coords, dtype=np.int64), patch_level0=size, attention=np.array(attention, dtype=np.float32),
        evidence=np.zeros((len(coords), 2), np.float32), logits={"a": 0.0, "b": 1.0},
        probabilities={"a": 0.27, "b": 0.73},
        target_mpp=2.0, pixels_decoded=0, seconds={}, cpu_seconds=0.0,
    )  # fmt: skip


def prediction_of(slide: Slide, teacher: str = "none") -> Prediction:
    *_, last = predict(slide, DarknessBundle(), device=torch.device("cpu"), teacher=TeacherPatches.parse(teacher))  # type: ignore[arg-type]
    assert isinstance(last, Finished)
    return last.result  # type: ignore[no-any-return]  # Finished carries anything


def test_each_patch_is_one_raster_pixel_at_its_place_and_nan_elsewhere() -> None:
    """Corners on a lattice hung at (333, 217); the raster starts at the leftmost and topmost patch."""
    corners = [[333 + 256 * 3, 217 + 320], [333 + 256, 217 + 640], [333 + 256 * 2, 217 + 320]]
    heat = make_heatmap(reading(corners, [0.5, 0.3, 0.2]))
    assert heat.origin_level0 == (333 + 256, 217 + 320) and heat.pixel_level0 == (256, 320)
    assert heat.image.shape == (2, 3) and heat.image.dtype == np.float32
    expected = np.array([[np.nan, 0.6, 1.5], [0.9, np.nan, np.nan]])
    np.testing.assert_allclose(heat.image, expected, rtol=1e-6)


def test_a_raster_pixel_leads_back_to_its_patchs_level0_box() -> None:
    rng = np.random.default_rng(0)
    index = rng.permutation(12 * 7)[:40]
    corners = np.stack([50 + 256 * (index % 12), 70 + 320 * (index // 12)], 1)
    attention = rng.dirichlet(np.ones(40))
    heat = make_heatmap(reading(corners.tolist(), attention.tolist()))
    row, column = np.unravel_index(np.nanargmax(heat.image), heat.image.shape)
    x = heat.origin_level0[0] + column * heat.pixel_level0[0]
    y = heat.origin_level0[1] + row * heat.pixel_level0[1]
    assert [x, y] == corners[attention.argmax()].tolist()
    assert np.isfinite(heat.image).sum() == 40


def test_grids_of_different_fineness_share_a_scale() -> None:
    """Uniform attention is 1 everywhere, with 3 patches as with 48."""
    for count in (3, 48):
        heat = make_heatmap(reading([[256 * i, 0] for i in range(count)], [1 / count] * count))
        np.testing.assert_allclose(heat.image, 1.0, rtol=1e-6)


def test_side_by_side_maps_have_one_scale_from_zero() -> None:
    flat = reading([[256 * i, 0] for i in range(4)], [0.25] * 4)
    blunt = reading([[256 * i, 0] for i in range(4)], [0.70, 0.10, 0.10, 0.10])
    sharp = reading([[256 * i, 0] for i in range(4)], [0.97, 0.01, 0.01, 0.01])
    assert color_limits([flat]) == (0.0, 2.0)  # noise round the average must not fill the scale
    low, high = color_limits([blunt, sharp])
    assert (
        low == 0 and 2.6 < high <= 2.8 and color_limits([sharp, blunt]) == (low, high)
    )  # the blunt one stays readable


@pytest.mark.parametrize("teacher", ["none", "all"])
def test_the_picture_is_written_whole_and_has_a_panel_for_each_network(tmp_path: Path, teacher: str) -> None:
    with fake_slide(tmp_path, FakeSlide(speckled(1300, 800), (1.0, 4.0), resolution(0.5, 0.4))) as slide:
        draw_overlay(tmp_path / "out" / "overlay.png", slide, prediction_of(slide, teacher))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["overlay.png"]
    with Image.open(tmp_path / "out" / "overlay.png") as picture:
        assert picture.format == "PNG"
        panels = {"none": 2, "all": 3}[teacher]
        assert picture.width == pytest.approx(110 * (4.4 * panels + 1), abs=2)


def test_the_picture_says_research_use_and_whether_it_is_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.figure import Figure

    texts: list[str] = []
    save = Figure.savefig

    def listen(figure: Figure, *args: object, **kwargs: object) -> None:
        from matplotlib.text import Text

        texts.extend(t.get_text() for t in figure.findobj(Text))  # type: ignore[attr-defined]  # Text
        save(figure, *args, **kwargs)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(Figure, "savefig", listen)
    with fake_slide(tmp_path, FakeSlide(speckled(1300, 800), (1.0, 4.0), resolution(0.5))) as slide:
        prediction = prediction_of(slide, "all")
        draw_overlay(tmp_path / "a.png", slide, prediction)
    everything = "\n".join(texts)
    assert RESEARCH_USE in everything and "not calibrated" in everything
    assert f"lesion {prediction.student.probabilities['lesion']:.2f}" in everything
    assert "Student (LR)" in everything and "Teacher (HR)" in everything and "µm" in everything


def test_the_regions_of_the_scope_are_outlined(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    from napari_lrmil.core.visualize import overlay

    included, excluded = (box_region(BoxLevel0(x, 40, 200, 100), "part") for x in (30, 700))
    axes = Figure().subplots()
    overlay._show_scope(axes, RegionOfInterest("region", (included,), excluded=(excluded,)))
    boxes = {(*line.get_xydata().min(axis=0), *line.get_xydata().max(axis=0)) for line in axes.get_lines()}
    assert boxes == {(30, 40, 230, 140), (700, 40, 900, 140)}
    assert {line.get_linestyle() for line in axes.get_lines()} == {"-", ":"}


def test_attention_is_drawn_over_its_own_tissue(tmp_path: Path) -> None:
    """The axes are level-0 pixels of the scanned part: the dark square's place is the brightest of the map."""
    from matplotlib.figure import Figure

    from napari_lrmil.core.visualize import overlay

    base = speckled(1400, 900)
    base[217 + 330 : 217 + 400, 333 + 520 : 333 + 600] = (70, 30, 90)
    names = {"bounds-x": "333", "bounds-y": "217", "bounds-width": "1000", "bounds-height": "600"}
    properties = resolution(0.5) | {f"openslide.{k}": v for k, v in names.items()}
    with fake_slide(tmp_path, FakeSlide(base, (1.0, 4.0), properties)) as slide:
        heat = make_heatmap(prediction_of(slide).student)
        axes = Figure().subplots()
        overlay.show_slide(axes, *overlay.slide_thumbnail(slide), slide)
        shown = overlay.show_attention(axes, heat, 0.0, 5.0)
    assert axes.get_xlim() == (333, 1333) and axes.get_ylim() == (817, 217), "y grows downwards"
    left, right, bottom, top = shown.get_extent()
    row, column = np.unravel_index(np.nanargmax(heat.image), heat.image.shape)
    rows, columns = heat.image.shape
    x = left + (column + 0.5) * (right - left) / columns
    y = top + (row + 0.5) * (bottom - top) / rows
    assert abs(x - (333 + 560)) <= 128 and abs(y - (217 + 365)) <= 128


def test_the_thumbnail_of_a_single_level_slide_is_read_in_bounded_blocks(tmp_path: Path) -> None:
    """A single-level scan of 100,000 x 80,000 px in one read would be 32 GB."""
    fake = FakeSlide(speckled(4500, 2300), properties=resolution(0.5))
    with fake_slide(tmp_path, fake) as slide:
        prediction = prediction_of(slide)
        fake.reads.clear()
        draw_overlay(tmp_path / "a.png", slide, prediction)
    assert max(width * height for _, _, (width, height) in fake.reads) <= 2100 * 2100


def test_blended_attention_lies_over_its_own_patch_and_nothing_else_changes() -> None:
    """A thumbnail of 2 level-0 px per pixel along x and 4 along y, of a box that begins at (100, 40)."""
    thumbnail = np.full((60, 90, 3), 200, np.uint8)
    heat = Heatmap(np.array([[np.nan, 3.0, 0.0]], np.float32), (90, 80), (40, 80))
    seen = blend_heatmap(thumbnail, BoxLevel0(100.0, 40.0, 180.0, 240.0), heat, (0.0, 3.0))
    changed = (seen != 200).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 29, 15, 54)
    assert changed[10:30, 15:55].all()
    bright, dark = seen[15, 20].astype(int), seen[15, 40].astype(int)
    np.testing.assert_allclose(bright, 0.6 * np.array([253, 231, 37]) + 80, atol=1.5)
    np.testing.assert_allclose(dark, 0.6 * np.array([68, 1, 84]) + 80, atol=1.5)
