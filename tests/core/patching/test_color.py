"""Colour: through the scanner's ICC profile, and as a distance from the slides of a cohort."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageCms

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.patching.color import (
    CELLS,
    FEWEST_SLIDES,
    LEAST_SPREAD,
    CohortColour,
    ColourStats,
    cohort_colour,
    color_stats,
    colour_distance,
    icc_transform,
)
from napari_lrmil.core.patching.grid import find_nested_grid
from napari_lrmil.core.slides.slide import Slide
from support.fake_slides import Array, FakeSlide, fake_slide, glass, one_sentence, resolution, speckled

PLAN = PatchPlan(0.5, 2.0, 64, 64)


class Broken:
    """A profile that is none."""

    def tobytes(self) -> bytes:
        return b"no profile"


def stats_of(folder: Path, base: Array, downsamples: tuple[float, ...] = (1.0, 4.0, 16.0)) -> ColourStats:
    with fake_slide(folder, FakeSlide(base, downsamples, resolution(0.5, 0.4))) as slide:
        return color_stats(slide, find_nested_grid(slide, PLAN))


def stained(base: Array, factor: float) -> Array:
    """Return the same section with so many times the stain."""
    return (256 * ((base.astype(float) + 1) / 256) ** factor - 1).clip(0, 255).astype(np.uint8)


# ---------------------------------------------------------------- ICC


def test_without_a_profile_there_is_no_transform(tmp_path: Path) -> None:
    with fake_slide(tmp_path, FakeSlide(glass(60, 40))) as slide:
        assert slide.icc_profile is None and icc_transform(slide) is None


def test_a_profile_is_applied_as_littlecms_does(tmp_path: Path) -> None:
    profile = swapped_primaries()
    base = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    with fake_slide(tmp_path, FakeSlide(base, color_profile=profile)) as slide:
        assert slide.icc_profile == profile.tobytes()
        correct = icc_transform(slide)
        assert correct is not None
        shown = correct(slide.read_level(0, 10, 5, 30, 20))
    assert shown.shape == (20, 30, 3) and shown.dtype == np.uint8
    np.testing.assert_allclose(shown.astype(int), base[5:25, 10:40, ::-1], atol=2)


def swapped_primaries() -> ImageCms.ImageCmsProfile:
    """Return sRGB whose red is blue and whose blue is red: corrected pixels are the channels in reverse."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    entries = {bytes(data[i : i + 4]): i for i in range(132, 132 + 12 * data[131], 12)}
    red, blue = entries[b"rXYZ"], entries[b"bXYZ"]
    data[red + 4 : red + 12], data[blue + 4 : blue + 12] = data[blue + 4 : blue + 12], data[red + 4 : red + 12]
    return ImageCms.ImageCmsProfile(io.BytesIO(bytes(data)))


def test_a_broken_profile_is_one_sentence(tmp_path: Path) -> None:
    fake = FakeSlide(glass(60, 40), color_profile=Broken())
    with fake_slide(tmp_path, fake) as slide, pytest.raises(SlideError, match="ICC") as caught:
        icc_transform(slide)
    assert one_sentence(caught.value)


def test_a_real_profile_of_a_scanner(shared_data: Path) -> None:
    """It is sRGB itself: corrected pixels are those that were read."""
    with Slide(shared_data / "slides" / "CMU-1-Small-Region_dicom") as slide:
        correct, pixels = icc_transform(slide), slide.read_level(0, 200, 300, 512, 256)
        profile = slide.icc_profile
    assert correct is not None and profile is not None and len(profile) == 588
    np.testing.assert_allclose(correct(pixels).astype(int), pixels, atol=1)
    with Slide(shared_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        assert slide.icc_profile is None


# ---------------------------------------------------------------- distance


def test_the_figures_are_the_optical_density_of_tissue_alone(tmp_path: Path) -> None:
    """Left half tissue of one colour, right half glass, which would pull the mean down."""
    base = glass(1300, 800)
    base[:, :700] = (199, 79, 159)
    found = stats_of(tmp_path, base)
    np.testing.assert_allclose(found.mean, -np.log10(np.array([200, 80, 160]) / 256), atol=0.01)
    np.testing.assert_allclose(found.deviation, 0, atol=0.02)


def test_the_cost_does_not_grow_with_the_slide(tmp_path: Path) -> None:
    fake = FakeSlide(speckled(3000, 2000), (1.0, 4.0, 16.0), resolution(0.5))
    with fake_slide(tmp_path, fake) as slide:
        grid = find_nested_grid(slide, PLAN)
        assert len(grid.hr_index) > 10 * CELLS
        fake.reads.clear()
        color_stats(slide, grid)
    assert len(fake.reads) == CELLS and {level for _, level, _ in fake.reads} == {2}


def test_levels_hardly_change_the_figures(tmp_path: Path) -> None:
    base = speckled(1300, 800)
    one, other = stats_of(tmp_path, base, (1.0,)), stats_of(tmp_path, base, (1.0, 4.002, 16.0))
    np.testing.assert_allclose(one.mean, other.mean, atol=0.01)


def test_more_stain_is_farther_and_a_like_slide_is_near(tmp_path: Path) -> None:
    cohort = cohort_colour([stats_of(tmp_path, speckled(1300, 800, seed)) for seed in range(6)])
    fresh = speckled(1300, 800, 99)
    near, more, much = (colour_distance(stats_of(tmp_path, stained(fresh, k)), cohort) for k in (1.0, 1.5, 2.5))
    assert near < 1.5 < more < much and more > 3


def test_distance_is_in_units_of_the_spread_between_slides() -> None:
    rng = np.random.default_rng(0)
    slides = [
        ColourStats(tuple(0.3 + 0.1 * rng.standard_normal(3)), tuple(0.1 + 0.05 * rng.standard_normal(3)))
        for _ in range(400)
    ]
    cohort = cohort_colour(slides)
    assert cohort.slides == 400
    np.testing.assert_allclose(cohort.mean_spread, 0.1, rtol=0.1)
    np.testing.assert_allclose(cohort.deviation_spread, 0.05, rtol=0.1)
    assert np.sqrt(np.mean([colour_distance(s, cohort) ** 2 for s in slides])) == pytest.approx(1, abs=0.02)
    away = ColourStats(cohort.mean, tuple(np.add(cohort.deviation, np.multiply(4, cohort.deviation_spread))))
    assert colour_distance(away, cohort) == pytest.approx(4 / np.sqrt(2))
    assert colour_distance(ColourStats(cohort.mean, cohort.deviation), cohort) == 0


def test_a_cohort_of_one_look_keeps_a_least_spread_and_too_few_slides_tell_none() -> None:
    alike = [ColourStats((0.2, 0.3, 0.1), (0.05, 0.06, 0.04))] * FEWEST_SLIDES
    assert cohort_colour(alike).mean_spread == (LEAST_SPREAD,) * 3
    with pytest.raises(ValueError, match=str(FEWEST_SLIDES)):
        cohort_colour(alike[1:])


def test_a_cohorts_colour_is_plain_json() -> None:
    cohort = cohort_colour([ColourStats((0.2, 0.3, 0.1), (0.05, 0.06, 0.04))] * FEWEST_SLIDES)
    again = json.loads(json.dumps(asdict(cohort)))
    assert CohortColour(**{k: tuple(v) if isinstance(v, list) else v for k, v in again.items()}) == cohort
