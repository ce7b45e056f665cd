"""Phantom slides: what the demo, the tests and the benchmark take for granted about them."""

from __future__ import annotations

import csv
import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from napari_lrmil.core.errors import CohortError, GeometryError
from napari_lrmil.core.events import Event, Finished, Progress
from napari_lrmil.core.phantom import (
    COMPOSITION,
    COMPOSITION_CELL,
    LESION,
    NORMAL,
    Phantom,
    PhantomLook,
    PhantomSlide,
    lesions_geojson,
    make_cohort,
    paint,
    write_pyramid,
    write_slide,
)

SIZE = (1664, 1216)  # width and height differ, and neither is a whole number of bands
TINY = (640, 448)
SHARES = slice(0, 4)  # of COMPOSITION; counts of nuclei follow


@pytest.fixture(scope="module")
def lesion() -> Phantom:
    return paint(PhantomSlide("a", LESION, 11, SIZE))


@pytest.fixture(scope="module")
def twin() -> Phantom:
    """Paint the same tissue without lesional nuclei."""
    return paint(PhantomSlide("a", NORMAL, 11, SIZE))


@pytest.fixture(scope="module")
def focus(lesion: Phantom) -> NDArray[np.bool_]:
    """(height, width): True in a lesion."""
    mask = Image.new("1", SIZE)
    for outline in lesion.lesions:
        ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in outline], fill=1)
    return np.asarray(mask)


def averaged(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.float64]:
    """Return area means, as a coarser objective would see."""
    height, width = (n // factor * factor for n in pixels.shape[:2])
    cut = pixels[:height, :width].reshape(height // factor, factor, width // factor, factor, 3)
    return np.asarray(cut.mean((1, 3)))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def result(events: list[Event]) -> Path:
    assert isinstance(events[-1], Finished)
    return Path(events[-1].result)


# ---------------------------------------------------------------- pixels


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others(lesion: Phantom) -> None:
    again = paint(PhantomSlide("another name", LESION, 11, SIZE))
    assert np.array_equal(again.pixels, lesion.pixels)
    assert not np.array_equal(paint(PhantomSlide("a", LESION, 12, SIZE)).pixels, lesion.pixels)


def test_width_and_height_are_not_swapped(lesion: Phantom, focus: NDArray[np.bool_]) -> None:
    """Outlines are x then y in level-0 pixels, so they lie on tissue; the composition is rows by columns."""
    assert lesion.pixels.shape == (SIZE[1], SIZE[0], 3)
    glass = lesion.composition[..., 0]
    assert glass.shape == (SIZE[1] // COMPOSITION_CELL, SIZE[0] // COMPOSITION_CELL)
    cells = focus.reshape(glass.shape[0], COMPOSITION_CELL, glass.shape[1], COMPOSITION_CELL).mean((1, 3))
    assert (cells * glass).sum() < 0.05 * cells.sum()
    assert 0.4 < 1 - glass.mean() < 0.8  # an L, not the whole slide
    assert not np.allclose(glass[:12, :12], glass[:12, :12].T, atol=0.3)


def test_pixels_look_like_glass_and_eosin_where_the_composition_says_so(lesion: Phantom) -> None:
    """The composition lies on the pixels it describes: glass is near white, stroma is pink."""
    cells = averaged(lesion.pixels, COMPOSITION_CELL)
    glass, stroma = cells[lesion.composition[..., 0] == 1], cells[lesion.composition[..., 1] > 0.99]
    assert len(glass) > 20 and len(stroma) > 2
    assert (glass.min(axis=0) > 235).all() and (np.ptp(glass, axis=1) < 8).all()
    assert (stroma.argmin(axis=1) == 1).all() and stroma.mean(0)[0] - stroma.mean(0)[1] > 35


def test_only_lesion_slides_have_lesions_and_they_cover_a_minor_share(
    lesion: Phantom, twin: Phantom, focus: NDArray[np.bool_]
) -> None:
    assert lesion.lesions and not twin.lesions
    share = focus.mean() / (1 - lesion.composition[..., 0].mean())
    assert 0.08 < share < 0.25


# ---------------------------------------------------------------- the signal


def test_a_focus_is_tissue_of_the_same_composition(lesion: Phantom, twin: Phantom) -> None:
    """Nothing in the composition tells a lesion: an encoder taught by it has not seen the label."""
    assert np.array_equal(lesion.composition, twin.composition)
    assert lesion.composition.shape[2] == len(COMPOSITION)
    assert np.allclose(lesion.composition[..., SHARES].sum(-1), 1, atol=1e-5)


def test_twins_differ_in_the_foci_only_and_not_in_mean_colour(
    lesion: Phantom, twin: Phantom, focus: NDArray[np.bool_]
) -> None:
    """Colour and density of a focus match its surroundings to a fraction of a grey level."""
    inside, plain = lesion.pixels[focus].mean(0), twin.pixels[focus].mean(0)
    assert np.abs(inside - plain).max() < 0.7
    apart = np.abs(lesion.pixels.astype(int) - twin.pixels).max(-1)
    assert (apart[focus] > 0).mean() > 0.05
    assert (apart[~focus] > 0).mean() < 0.01  # nuclei whose centre lies just within reach across the outline


def test_the_difference_is_fine_structure(lesion: Phantom, twin: Phantom, focus: NDArray[np.bool_]) -> None:
    """Lesional nuclei are rougher than the twin's; at 5x they still differ in darkness from each other."""
    nuclei = (twin.pixels[..., 0] < 170) & focus
    fine = roughness(lesion.pixels.astype(float), nuclei) / roughness(twin.pixels.astype(float), nuclei)
    coarse_nuclei = averaged(np.repeat(nuclei[..., None], 3, 2).astype(np.uint8), 4)[..., 0] > 0.5
    coarse = roughness(averaged(lesion.pixels, 4), coarse_nuclei) / roughness(averaged(twin.pixels, 4), coarse_nuclei)
    assert fine > 1.25
    assert coarse > 1.25


def roughness(image: NDArray[np.float64], where: NDArray[np.bool_]) -> float:
    """Return the sd of the red channel, which haematoxylin darkens, about the mean of its four neighbours."""
    red = image[..., 0]
    around = sum(np.roll(red, step, axis) for step in (-1, 1) for axis in (0, 1)) / 4
    return float((red - around)[where].std())


# ---------------------------------------------------------------- files


def test_openslide_reads_resolution_and_native_levels(tmp_path: Path) -> None:
    """A 20x phantom has mpp, a native 5x level and one of 8 µm, so no reader need decode 20x for them."""
    path = write_slide(tmp_path, PhantomSlide("a", LESION, 3, TINY))
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == TINY
        assert slide.properties["openslide.vendor"] == "aperio"
        assert [float(slide.properties[f"openslide.mpp-{axis}"]) for axis in "xy"] == [0.5, 0.5]
        assert slide.level_downsamples == (1, 2, 4, 8, 16)
        small = np.asarray(slide.read_region((0, 0), 2, slide.level_dimensions[2]))[..., :3].reshape(-1, 3)
    glass = small[small.sum(1) >= np.percentile(small.sum(1), 80)].mean(0)
    assert glass.min() > 230 and np.ptp(glass) < 8  # YCbCr under a false name would be green
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "a_lesions.geojson"]


@pytest.mark.parametrize(("mpp", "mpp_y", "container"), [(0.25, None, "aperio"), (0.2649, 0.31, "generic")])
def test_any_array_is_written_where_it_belongs(tmp_path: Path, mpp: float, mpp_y: float | None, container: str) -> None:
    """A planted square is found at its place on each level, and both resolutions survive."""
    level0 = np.full((700, 901, 3), 240, dtype=np.uint8)
    level0[128:256, 512:768] = (200, 40, 120)
    path = tmp_path / "deep" / "square.tif"
    write_pyramid(path, level0, mpp, container=container, levels=3, mpp_y=mpp_y)
    with openslide.OpenSlide(path) as slide:
        resolution = [float(slide.properties[f"openslide.mpp-{axis}"]) for axis in "xy"]
        assert resolution == pytest.approx([mpp, mpp_y or mpp], rel=1e-5)
        assert slide.level_dimensions == ((901, 700), (450, 350), (225, 175))
        for level in range(3):
            at = np.asarray(slide.read_region((520, 136), level, (16, 16)))[..., :3].mean((0, 1))
            assert at == pytest.approx((200, 40, 120), abs=4)
            outside = np.asarray(slide.read_region((136, 520), level, (16, 16)))[..., :3].mean((0, 1))
            assert outside == pytest.approx((240, 240, 240), abs=3)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slide is there whole or not at all, and an older one survives."""
    path = tmp_path / "a.tif"
    path.write_bytes(b"older")
    monkeypatch.setattr("napari_lrmil.core.phantom.pyramid._halve", lambda image: 1 / 0)  # fails within level 0
    with pytest.raises(ZeroDivisionError):
        write_pyramid(path, np.zeros((300, 300, 3), dtype=np.uint8), 0.5)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]
    assert path.read_bytes() == b"older"


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    with pytest.raises(GeometryError, match="generic"):
        write_pyramid(tmp_path / "a.tif", pixels, 0.5, mpp_y=0.6)
    with pytest.raises(GeometryError, match="unknown"):
        write_pyramid(tmp_path / "a.tif", pixels, 0.5, container="czi")
    with pytest.raises(CohortError, match="benign"):
        PhantomSlide("a", "benign", 1, SIZE)
    with pytest.raises(GeometryError, match="200 µm"):
        PhantomSlide("a", NORMAL, 1, (640, 300))


def test_lesions_are_closed_polygons_of_level0_pixels(lesion: Phantom) -> None:
    """QuPath and the lesion AUROC read the same file; a normal slide has one too, and it is empty."""
    collection = json.loads(json.dumps(lesions_geojson(lesion.lesions)))
    assert [f["geometry"]["type"] for f in collection["features"]] == ["Polygon"] * len(lesion.lesions)
    ring = collection["features"][0]["geometry"]["coordinates"][0]
    assert ring[0] == ring[-1]
    assert np.allclose(ring[:-1], lesion.lesions[0], atol=0.06)
    assert lesions_geojson(()) == {"type": "FeatureCollection", "features": []}


# ---------------------------------------------------------------- cohorts


def test_a_cohort_grows_by_calls_and_names_do_not_tell_the_label(tmp_path: Path) -> None:
    """Rows of several calls share one table; half of each call's slides are lesional; patients are their own."""
    first = list(make_cohort(tmp_path, 4, TINY, 1, split="train"))
    assert [e.done for e in first if isinstance(e, Progress)] == [1, 2, 3, 4]
    assert all((e.stage, e.unit, e.total) == ("phantom", "slides", 4) for e in first if isinstance(e, Progress))
    table = result(list(make_cohort(tmp_path, 2, TINY, 1, split="test")))
    rows = read(table)
    assert table == tmp_path / "cohort.csv"
    assert list(rows[0]) == ["slide", "patient", "label", "split"]
    assert sorted(r["split"] for r in rows) == ["test"] * 2 + ["train"] * 4
    assert sorted(r["label"] for r in rows if r["split"] == "train") == [LESION] * 2 + [NORMAL] * 2
    assert len({r["patient"] for r in rows}) == 6
    assert not any(label in r["slide"] for r in rows for label in (NORMAL, LESION))
    for row in rows:
        path = tmp_path / row["slide"]
        lesions = json.loads(path.with_name(f"{path.stem}_lesions.geojson").read_text())["features"]
        assert bool(lesions) == (row["label"] == LESION)


def test_without_a_split_slides_are_split_60_20_20_within_each_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each split has both classes, and the order of slides does not follow the label."""
    monkeypatch.setattr(
        "napari_lrmil.core.phantom.cohort.write_slide", lambda folder, slide, look, variants: folder / slide.name
    )
    rows = read(result(list(make_cohort(tmp_path, 20, TINY, 5))))
    counts = {(r["split"], r["label"]): 0 for r in rows}
    for row in rows:
        counts[row["split"], row["label"]] += 1
    wanted = {"train": 6, "val": 2, "test": 2}
    assert counts == {(s, label): n for s, n in wanted.items() for label in (NORMAL, LESION)}
    labels = [r["label"] for r in rows]
    assert labels != sorted(labels) and labels[::2] != labels[:1] * 10


def test_workers_do_not_change_the_pixels(tmp_path: Path) -> None:
    """The same arguments give the same bytes whether one process paints or two."""
    single = result(list(make_cohort(tmp_path / "one", 2, TINY, 9)))
    double = result(list(make_cohort(tmp_path / "two", 2, TINY, 9, workers=2)))
    assert single.read_text() == double.read_text()
    for row in read(single):
        assert (single.parent / row["slide"]).read_bytes() == (double.parent / row["slide"]).read_bytes()


def test_a_cohort_left_early_has_no_table_and_a_foreign_table_is_kept(tmp_path: Path) -> None:
    """A row appears when its slide is there; a table of somebody else is not overwritten."""
    look = replace(PhantomLook(), lymphocytes=0)
    with closing(make_cohort(tmp_path, 2, TINY, 1, look=look)) as events:  # type: ignore[type-var]
        next(events)
    assert not (tmp_path / "cohort.csv").exists()
    (tmp_path / "cohort.csv").write_text("slide,label\nmine.svs,normal\n")
    with pytest.raises(CohortError, match="another folder"):
        list(make_cohort(tmp_path, 1, TINY, 1))
    assert "mine.svs" in (tmp_path / "cohort.csv").read_text()
