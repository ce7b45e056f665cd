"""Outlines of regions: solid or dotted, holes too, black on white, smooth."""

from __future__ import annotations

import time

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from PIL import Image

from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.patching.regions import Region, box_region
from napari_lrmil.core.patching.roi import WHOLE_SLIDE, RegionOfInterest
from napari_lrmil.core.visualize import scope_outlines
from napari_lrmil.core.visualize.scope_outlines import outline_scope

BOX, SIZE = BoxLevel0(100.0, 50.0, 2000.0, 1200.0), (400, 240)  # 5 level-0 px per pixel


def drawn(scope: RegionOfInterest, grey: int = 128) -> NDArray[np.uint8]:
    picture = Image.new("RGB", SIZE, (grey, grey, grey))
    outlines = outline_scope(scope, BOX, SIZE)
    assert outlines is not None
    outlines.draw_on(picture)
    return np.asarray(picture)[..., 0]


def test_a_whole_slide_has_no_outline() -> None:
    assert outline_scope(WHOLE_SLIDE, BOX, SIZE) is None


def test_region_and_hole_are_outlined_in_their_places_black_on_white() -> None:
    hole = shapely.box(600, 450, 1100, 850)
    region = Region("tumour", shapely.Polygon(shapely.box(300, 250, 1600, 1050).exterior, [hole.exterior]))
    seen = drawn(RegionOfInterest("region", (region,)))
    rows, columns = np.nonzero(seen < 64)
    outer = ((300 - 100) // 5, (250 - 50) // 5, (1600 - 100) // 5, (1050 - 50) // 5)
    np.testing.assert_allclose((columns.min(), rows.min(), columns.max(), rows.max()), outer, atol=1)
    middle = seen[120]  # the row through the middle of both: two edges of the region, two of the hole
    dark = np.flatnonzero(middle < 64)
    edges = sorted({round(float(group.mean())) for group in np.split(dark, np.flatnonzero(np.diff(dark) > 1) + 1)})
    np.testing.assert_allclose(edges, [40, 100, 200, 300], atol=1)
    for edge in edges:
        sides = middle[edge - 4 : edge], middle[edge + 1 : edge + 5]
        assert min(int(side.max()) for side in sides) > 200, "white on both sides"
    assert seen[5, 5] == 128


def test_what_is_left_out_is_dotted_and_what_is_kept_is_solid() -> None:
    part = box_region(BoxLevel0(600.0, 450.0, 500.0, 400.0), "part")
    for name, is_dotted in (("included", False), ("excluded", True)):
        top = drawn(RegionOfInterest(**{name: (part,)}))[80, 104:196]  # type: ignore[arg-type]  # either field
        changes = np.count_nonzero(np.diff((top < 128).astype(int)))
        assert (changes > 20) if is_dotted else (changes == 0 and (top < 128).all()), name


def test_outlines_are_smooth() -> None:
    circle = Region("round", shapely.Point(1100, 650).buffer(400))
    assert len(np.unique(drawn(RegionOfInterest("region", (circle,))))) > 20


def test_a_region_far_beyond_the_picture_is_cut_at_its_edges() -> None:
    """Otherwise the dots of an outline 10 million px long would take minutes."""
    wide = box_region(BoxLevel0(-5e6, 450.0, 1e7, 400.0), "wide")
    seen = drawn(RegionOfInterest(excluded=(wide,)))
    rows = np.flatnonzero((seen < 64).any(axis=1))
    assert set(np.round(rows / 80).tolist()) == {1, 2}


def test_outlines_that_are_widened_together_look_like_those_drawn_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    angle = np.linspace(0, 2 * np.pi, 50, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    solid, dotted = (Region("r", shapely.Polygon((1100, 650) + r * circle)) for r in (450, 250))
    scope = RegionOfInterest("region", (solid,), excluded=(dotted,))
    alone = drawn(scope).astype(int)
    monkeypatch.setattr(scope_outlines, "MANY_CORNERS", 0)
    together = drawn(scope).astype(int)
    assert np.abs(alone - together).mean() < 2
    for is_line in (np.less, np.greater):  # black, white
        counts = [np.count_nonzero(is_line(seen, 128)) for seen in (alone, together)]
        assert counts[0] == pytest.approx(counts[1], rel=0.1)
    np.testing.assert_array_equal(together[120, 192:200] < 64, False)


@pytest.mark.parametrize("radius", [3.0, 40.0])
@pytest.mark.parametrize("field", ["regions", "excluded"])
def test_sixty_thousand_outlines_are_drawn_in_seconds(radius: float, field: str) -> None:
    """CPU seconds; one by one they take half a minute, and minutes if they are large."""
    angle = np.linspace(0, 2 * np.pi, 30, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius
    centres = np.random.default_rng(0).uniform((100, 50), (2100, 1250), (60_000, 1, 2))
    regions = tuple(Region("cell", polygon) for polygon in shapely.polygons(centres + circle))
    scope = RegionOfInterest("region", regions) if field == "regions" else RegionOfInterest(excluded=regions)
    began = time.process_time()
    outlines = outline_scope(scope, BOX, SIZE)
    assert time.process_time() - began < 10
    assert outlines is not None and np.asarray(outlines.halo).mean() > 200
