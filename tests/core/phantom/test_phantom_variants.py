"""Variants of the phantom: each opens as a slide of its kind, and what is planted lies where it is said to lie."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from napari_lrmil.core.errors import ConfigError, GeometryError, ResolutionError
from napari_lrmil.core.geometry import Bounds, BoxLevel0, PatchPlan
from napari_lrmil.core.patching.tissue import find_tissue
from napari_lrmil.core.phantom import (
    BOUNDS_OFFSET,
    CONTAINERS,
    LESION,
    VARIANTS,
    PhantomLook,
    PhantomSlide,
    paint,
    write_pyramid,
    write_slide,
)
from napari_lrmil.core.phantom.variants import combine_variants
from napari_lrmil.core.slides.phantom_mark import has_phantom_mark
from napari_lrmil.core.slides.slide import Slide

SLIDE = PhantomSlide("a", LESION, 11, (1600, 1152))
PLAN = PatchPlan(hr_mpp=0.5, lr_mpp=2.0, hr_patch_px=64, lr_patch_px=64)

Mask = NDArray[np.bool_]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("plain"), SLIDE)


def whole(path: Path) -> NDArray[np.int16]:
    """Return level 0 as far as the file has scanned it."""
    with Slide(path) as slide:
        b = slide.bounds
        return slide.read_level(0, b.x, b.y, b.width, b.height).astype(np.int16)


def outlines(path: Path, what: str) -> list[list[tuple[float, float]]]:
    collection = json.loads(path.with_name(f"{path.stem}_{what}.geojson").read_text())
    return [[(x, y) for x, y in f["geometry"]["coordinates"][0]] for f in collection["features"]]


def inside(path: Path, what: str, grown: int = 0) -> Mask:
    """Return (height, width): True within the outlines that lie beside a slide, widened by `grown` px."""
    mask = Image.new("1", SLIDE.size)
    for ring in outlines(path, what):
        ImageDraw.Draw(mask).polygon(ring, fill=1)
        if grown:
            ImageDraw.Draw(mask).line(ring, fill=1, width=2 * grown, joint="curve")
    return np.asarray(mask)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("variant", "name", "vendor", "levels"),
    [
        ("svs", "a.svs", "aperio", 5),
        ("generic", "a.tif", "generic-tiff", 5),
        ("ome", "a.ome.tif", "ome-tiff", 5),
        ("bounds", "a.scn", "leica", 5),
    ],
)
def test_each_container_opens_with_its_vendor_levels_and_resolution(
    tmp_path: Path, plain: Path, variant: str, name: str, vendor: str, levels: int
) -> None:
    """The pixels are the same in every container."""
    path = write_slide(tmp_path, SLIDE, variants=[variant])
    with Slide(path) as slide:
        assert (path.name, slide.vendor, len(slide.levels)) == (name, vendor, levels)
        assert (slide.mpp.x, slide.mpp.y) == pytest.approx((0.5, 0.5))
        assert slide.objective_power == (20 if vendor in ("aperio", "leica") else None)
    assert np.array_equal(whole(path), whole(plain))


def test_tifffile_finds_the_pyramid_of_an_ome_tiff(tmp_path: Path) -> None:
    """What OpenSlide does not see: lower levels below the first, and sizes in µm."""
    path = write_slide(tmp_path, SLIDE, variants=["ome"])
    with tifffile.TiffFile(path) as file:
        shapes = [level.shape for level in file.series[0].levels]
        assert shapes == [(1152 >> i, 1600 >> i, 3) for i in range(5)]
        assert 'PhysicalSizeX="0.5"' in str(file.ome_metadata)
        assert len(file.pages) == 1


def test_a_slide_with_bounds_has_its_scan_off_the_corner(tmp_path: Path, plain: Path) -> None:
    """Bounds at every level; lesions are pixels of level 0, so they move with the scan."""
    path = write_slide(tmp_path, SLIDE, variants=["bounds"])
    x, y = BOUNDS_OFFSET
    with Slide(path) as slide, Slide(plain) as reference:
        assert slide.bounds == Bounds(x, y, *SLIDE.size)
        assert (slide.width, slide.height) == (1600 + x + 640, 1152 + y + 384)
        assert (slide.read_level(0, x - 50, y + 9, 50, 40) == 255).all()  # nothing was scanned there
        for level in (1, 2, 4):
            scale = 2**level
            size = (1600 // scale, 1152 // scale)
            pixels = slide.read(BoxLevel0(x, y, *SLIDE.size), size).astype(int)
            assert np.abs(pixels - reference.read(BoxLevel0(0, 0, *SLIDE.size), size)).mean() < 1
    for moved, ring in zip(outlines(path, "lesions"), outlines(plain, "lesions"), strict=True):
        assert np.allclose(moved, np.add(ring, BOUNDS_OFFSET), atol=0.06)


@pytest.mark.parametrize("variants", [("no-mpp",), ("no-mpp", "generic"), ("no-mpp", "ome")])
def test_without_mpp_nothing_in_the_file_tells_a_resolution(tmp_path: Path, variants: tuple[str, ...]) -> None:
    with Slide(write_slide(tmp_path, SLIDE, variants=variants)) as slide:
        assert not slide.has_mpp and slide.objective_power is None
        assert not [key for key, value in slide.properties.items() if "mpp" in key.lower() or "MPP" in value]
        with pytest.raises(ResolutionError, match="--mpp"):
            _ = slide.mpp


# ---------------------------------------------------------------- tissue


def test_at_40x_the_same_tissue_has_twice_the_pixels(tmp_path: Path, plain: Path) -> None:
    """At 1 µm per pixel the 40x slide shows what the 20x one shows; lesions have twice the coordinates."""
    path = write_slide(tmp_path, SLIDE, variants=["40x"])
    with Slide(path) as fine, Slide(plain) as coarse:
        assert (fine.width, fine.height) == (3200, 2304)
        assert (fine.mpp.x, fine.objective_power) == (0.25, 40)
        views = [s.read(BoxLevel0(0, 0, s.width, s.height), (800, 576))[..., 0] for s in (fine, coarse)]
    assert np.corrcoef(*(view.ravel() for view in views))[0, 1] > 0.93
    for twice, ring in zip(outlines(path, "lesions"), outlines(plain, "lesions"), strict=True):
        assert np.allclose(twice, np.multiply(ring, 2), atol=0.2)


def test_a_fold_is_dark_tissue_that_counts_as_tissue(tmp_path: Path, plain: Path) -> None:
    """Twice the stain within the outline, nothing changed outside; the tissue mask keeps it."""
    path = write_slide(tmp_path, SLIDE, variants=["fold"])
    before, after = whole(plain), whole(path)
    fold, near = inside(path, "artefacts"), inside(path, "artefacts", grown=80)
    tissue = fold & (before.min(-1) < 215)
    assert tissue.mean() > 0.02
    single, double = (np.log(243 / np.maximum(view[tissue][:, 0], 1)).mean() for view in (before, after))
    assert double == pytest.approx(1.95 * single, rel=0.08)
    assert (np.abs(after - before)[~near] > 5).mean() < 1e-4  # its round ends
    assert np.abs(after - before)[~near].mean() < 0.01
    assert mask_share(path, fold & tissue) > 0.97


@pytest.mark.parametrize(
    ("variant", "strongest", "counts_as_tissue"), [("pen", 1, True), ("pen-blue", 2, True), ("pen-black", None, False)]
)
def test_a_pen_crosses_tissue_and_glass(
    tmp_path: Path, plain: Path, variant: str, strongest: int | None, counts_as_tissue: bool
) -> None:
    """Coloured ink is colourful, so the mask takes it for tissue, on glass as well; black is too dark to be any."""
    path = write_slide(tmp_path, SLIDE, variants=[variant])
    before, after = whole(plain), whole(path)
    pen, near = inside(path, "artefacts"), inside(path, "artefacts", grown=160)  # its ends are round
    glass, tissue = pen & (before.min(-1) > 230), pen & (before.min(-1) < 200)
    assert min(glass.mean(), tissue.mean()) > 0.01
    ink = after[glass].mean(0)
    assert (ink.max() < 30) if strongest is None else (ink.argmax() == strongest and np.ptp(ink) > 60)
    assert (after[tissue] < after[glass].mean(0) + 12).all(
        1
    ).mean() > 0.9  # it lies over the tissue, which shows through
    assert np.abs(after - before)[~near].mean() < 0.01
    share = mask_share(path, pen & ~inside(plain, "lesions") & open_glass(before))
    assert share > 0.9 if counts_as_tissue else share < 0.1


def open_glass(pixels: NDArray[np.int16]) -> Mask:
    """Return (height, width): True in blocks of 64 px that are glass throughout."""
    blocks = pixels.min(-1).reshape(1152 // 64, 64, 1600 // 64, 64).min((1, 3)) > 225
    return np.repeat(np.repeat(blocks, 64, 0), 64, 1)


def mask_share(path: Path, where: Mask) -> float:
    """Return the share of level-0 pixels `where` that the tissue mask covers."""
    with Slide(path) as slide:
        lattice = PLAN.lattice(slide.bounds, slide.mpp)
        mask = find_tissue(slide, lattice).mask
    assert lattice.origin == (0, 0)
    y, x = np.nonzero(where)
    row, column = (
        y * mask.shape[0] // (lattice.rows * lattice.cell[1]),
        x * mask.shape[1] // (lattice.columns * lattice.cell[0]),
    )
    return float(mask[row, column].mean())


# ---------------------------------------------------------------- names


def test_variants_combine(tmp_path: Path) -> None:
    """All of them at once on one slide, outlines of each in the pixels of the file."""
    path = write_slide(tmp_path, SLIDE, variants=["40x", "fold", "pen-blue", "bounds"])
    with Slide(path) as slide:
        assert (slide.vendor, slide.mpp.x, slide.bounds.width, slide.objective_power) == ("leica", 0.25, 3200, 40)
    fold, pen = (np.array(ring) for ring in outlines(path, "artefacts"))
    for ring in (fold, pen):
        assert (ring > BOUNDS_OFFSET).all() and (ring < np.add(BOUNDS_OFFSET, (3200, 2304))).all()
    assert np.ptp(fold[:, 0]) < np.ptp(pen[:, 0])


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'fax'"):
        write_slide(tmp_path, SLIDE, variants=["fax"])
    with pytest.raises(ConfigError, match="leica and ome"):
        write_slide(tmp_path, SLIDE, variants=["bounds", "ome"])
    with pytest.raises(ConfigError, match="black and green"):
        combine_variants(["pen", "pen-black"])
    with pytest.raises(GeometryError, match="laid out in nm"):
        write_slide(tmp_path, SLIDE, variants=["bounds", "no-mpp"])
    with pytest.raises(ConfigError, match="'red'"):
        PhantomLook(pen="red")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_the_same_twice(name: str) -> None:
    """Tissue, fold and pen follow the seed."""
    slide = PhantomSlide("a", LESION, 4, (640, 448))
    first, second = (paint(slide.zoomed(VARIANTS[name].zoom), VARIANTS[name].apply(PhantomLook())) for _ in range(2))
    assert np.array_equal(first.pixels, second.pixels)


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_format_says_that_it_is_a_phantom(tmp_path: Path, container: str) -> None:
    """Else the window would choose no model for it."""
    path = tmp_path / f"a{CONTAINERS[container].suffix}"
    write_pyramid(path, np.full((512, 512, 3), 200, np.uint8), 0.5, container=container)
    with Slide(path) as slide:
        assert has_phantom_mark(slide.properties)
