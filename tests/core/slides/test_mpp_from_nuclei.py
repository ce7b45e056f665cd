"""The estimate from nuclear size: tissue at another scale, phantoms, real pixels; and where it keeps silent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from napari_lrmil.core.phantom import PhantomSlide, paint
from napari_lrmil.core.slides.mpp_from_nuclei import (
    MppEstimate,
    choose_fields,
    diameters_um,
    estimate_mpp,
    haematoxylin,
)
from napari_lrmil.core.slides.slide import Slide
from support.fake_slides import Array, FakeSlide, fake_slide, glass, resolution, speckled


def dots(width: int, height: int, diameter: float, seed: int = 0) -> Array:
    """Return eosin with blurred round nuclei of that many pixels on a jittered lattice."""
    image = Image.new("RGB", (width * 4, height * 4), (228, 170, 200))
    draw, rng, step = ImageDraw.Draw(image), np.random.default_rng(seed), 2.6 * diameter
    for y in np.arange(step / 2, height, step):
        for x in np.arange(step / 2, width, step):
            cx, cy = (np.array([x, y]) + rng.uniform(-0.3, 0.3, 2) * diameter) * 4
            r = diameter * 2 * rng.uniform(0.9, 1.1)
            draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=(96, 70, 150))
    return np.array(image.resize((width, height), Image.Resampling.BOX))


def estimated(folder: Path, base: Array, **properties: str) -> MppEstimate | None:
    with fake_slide(folder, FakeSlide(base, properties=properties)) as slide:
        return estimate_mpp(slide)


def test_diameters_are_those_drawn() -> None:
    found = diameters_um(haematoxylin(dots(400, 300, 14.0)), 0.5)
    assert len(found) > 60 and np.median(found) == pytest.approx(7.0, rel=0.12)


@pytest.mark.parametrize("diameter", [10.0, 14.0, 20.0])
def test_nuclei_of_twice_as_many_pixels_halve_the_estimate(tmp_path: Path, diameter: float) -> None:
    """No resolution is known; the figure hangs on the pixels alone."""
    small = estimated(tmp_path, dots(500, 400, diameter))
    large = estimated(tmp_path, dots(1000, 800, 2 * diameter))
    assert small is not None and large is not None
    assert small.mpp / large.mpp == pytest.approx(2.0, rel=0.12)
    assert small.mpp == pytest.approx(5.2 / diameter, rel=0.25)
    assert small.low < small.mpp < small.high and small.nuclei >= 50


def test_a_stated_resolution_is_not_looked_at(tmp_path: Path) -> None:
    base = dots(500, 400, 12.0)
    assert estimated(tmp_path, base) == estimated(tmp_path, base, **resolution(7.0))


def test_phantoms_of_20x_and_40x_are_told_apart(tmp_path: Path) -> None:
    """Phantom nuclei, 8 µm across, are larger than real ones: the figure is low, by about the same factor in both."""
    fine, coarse = (
        estimated(tmp_path, paint(PhantomSlide("p", "normal", 11, (1536, 1300), mpp)).pixels) for mpp in (0.25, 0.5)
    )
    assert fine is not None and coarse is not None
    assert fine.mpp / 0.25 == pytest.approx(0.7, rel=0.15) and coarse.mpp / 0.5 == pytest.approx(0.7, rel=0.15)
    assert fine.high < coarse.mpp and fine.mpp < coarse.low


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("CMU-1-Small-Region.svs", 0.499),
        ("CMU-1-Small-Region_dicom", 0.499),
        ("derived/CMU-1-Small-Region_pyramid_aperio.svs", 0.499),
        ("derived/monuseg_TCGA-A7-A13E_40x_aperio.svs", 0.25),
        ("derived/monuseg_TCGA-A7-A13E_40x_generic.tif", 0.25),
    ],
)
def test_real_tissue_within_the_stated_factor_and_its_nominal_resolution(
    shared_data: Path, name: str, truth: float
) -> None:
    with Slide(shared_data / "slides" / name) as slide:
        found = estimate_mpp(slide)
    assert found is not None and found.low <= truth <= found.high
    assert found.nominal == pytest.approx(truth, rel=0.01)


@pytest.mark.parametrize("name", ["test3-TRITC 2 (560).ndpi", "camelyon_overview_jpeg"])
def test_fluorescence_and_overviews_give_no_estimate(shared_data: Path, name: str) -> None:
    with Slide(shared_data / "slides" / name) as slide:
        assert estimate_mpp(slide) is None


def test_glass_blocks_of_colour_and_a_few_nuclei_give_no_estimate(tmp_path: Path) -> None:
    few = glass(700, 500)
    few[100:200, 300:420] = dots(120, 100, 12.0)
    for base in (glass(700, 500), speckled(700, 500), few, np.zeros((500, 700, 3), np.uint8)):
        assert estimated(tmp_path, base) is None


def test_dirt_does_not_hide_nuclei(tmp_path: Path) -> None:
    base = dots(700, 500, 12.0)
    clean = estimated(tmp_path, base)
    base[40:46, 50:56] = 0
    base[300, 200:215] = (0, 255, 0)
    dirty = estimated(tmp_path, base)
    assert clean is not None and dirty is not None and dirty.mpp == pytest.approx(clean.mpp, rel=0.05)


def test_fields_lie_where_nuclei_are_richest_first(tmp_path: Path) -> None:
    """Parts are 866 x 1050 px; nuclei fill the right one below, and half of the right one above."""
    base = glass(2600, 2100)
    base[1050:, 1733:] = dots(867, 1050, 10.0)
    base[500:1050, 1733:] = dots(867, 550, 10.0, seed=1)
    with fake_slide(tmp_path, FakeSlide(base, (1.0, 4.0))) as slide:
        boxes = choose_fields(slide)
    assert [(box.x, box.y, box.width, box.height) for box in boxes] == [(1733, 1050, 866, 1050), (1733, 0, 866, 1050)]


def test_fields_start_at_the_bounds(tmp_path: Path) -> None:
    where = {"x": 300, "y": 200, "width": 1200, "height": 800}
    base = glass(1600, 1100)
    base[200:1000, 300:1500] = dots(1200, 800, 10.0)
    fake = FakeSlide(base, properties={f"openslide.bounds-{k}": str(v) for k, v in where.items()})
    with fake_slide(tmp_path, fake) as slide:
        (box,) = choose_fields(slide)
    assert (box.x, box.y, box.width, box.height) == (300, 200, 1200, 800)


def test_a_slide_smaller_than_a_field_is_one_field(tmp_path: Path) -> None:
    with fake_slide(tmp_path, FakeSlide(dots(500, 300, 12.0))) as slide:
        (box,) = choose_fields(slide)
    assert (box.x, box.y, box.width, box.height) == (0, 0, 500, 300)


@pytest.mark.parametrize(("mpp", "nominal"), [(0.27, 0.25), (0.4, 0.5), (0.34, 0.25), (0.9, None), (0.15, None)])
def test_the_nominal_resolution_is_proposed_only_where_it_is_near(mpp: float, nominal: float | None) -> None:
    assert MppEstimate(mpp, mpp / 1.4, mpp * 1.4, 80).nominal == nominal
