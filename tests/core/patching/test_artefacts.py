"""Artefacts that are painted on phantoms are found, named and left out; a clean phantom has none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.patching.artefacts import (
    BLUR,
    BUBBLE,
    FOLD,
    PEN,
    STEP,
    ArtefactShares,
    exclude_artefacts,
    find_artefacts,
    measure_sharpness,
)
from napari_lrmil.core.patching.tissue import Tissue, TissueConfig, find_tissue
from napari_lrmil.core.phantom import NORMAL, PhantomSlide, write_slide
from napari_lrmil.core.phantom.artefact_paint import paint_blur, paint_bubble, paint_pen
from napari_lrmil.core.slides.slide import Pixels, Slide
from support.fake_slides import write_tiff

SIZE = (3072, 2304)
INKS = {
    "green": (0.25, 0.66, 0.40),
    "blue": (0.20, 0.36, 0.75),
    "black": (0.20, 0.20, 0.22),
    "red": (0.86, 0.18, 0.20),
    "yellow": (0.95, 0.85, 0.25),
}
MIDDLE = (0.3 * 0.5 * SIZE[0], 0.42 * 0.5 * SIZE[1])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Pixels:
    path = write_slide(tmp_path_factory.mktemp("phantom"), PhantomSlide("plain", NORMAL, 300, SIZE))
    with Slide(path) as slide:
        return slide.read_level(0, 0, 0, *SIZE)


def tissue_of(path: Path, *, exclude: bool = False) -> Tissue:
    with Slide(path) as slide:
        lattice = PatchPlan(0.5, 2.0, 128, 128).lattice(slide.bounds, slide.mpp)
        return find_tissue(slide, lattice, TissueConfig(exclude_artefacts=exclude))


def painted(tmp_path: Path, pixels: Pixels) -> Path:
    return write_tiff(tmp_path / "painted.tif", pixels, (1.0, 4.0), mpp=(0.5, 0.5))


def shares(tissue: Tissue) -> dict[str, float]:
    assert tissue.artefacts is not None
    return dict(tissue.artefacts.shares)


def test_a_clean_phantom_has_none_and_keeps_its_mask(tmp_path: Path, plain: Pixels) -> None:
    path = painted(tmp_path, plain)
    tissue = tissue_of(path)
    assert shares(tissue) == {}
    assert np.array_equal(tissue_of(path, exclude=True).mask, tissue.mask)


@pytest.mark.parametrize("ink", INKS)
def test_pens_of_any_colour_are_found_and_left_out(tmp_path: Path, plain: Pixels, ink: str) -> None:
    pixels, covered = paint_pen(plain, 0.5, INKS[ink])
    path = painted(tmp_path, pixels)
    tissue, rest = tissue_of(path), tissue_of(path, exclude=True)
    assert set(shares(tissue)) == {PEN}
    rows, columns = SIZE[1] // 16, SIZE[0] // 16  # mask pixels of 8 µm
    inner = covered.reshape(rows, 16, columns, 16).all(axis=(1, 3))
    on_tissue = tissue.mask[:rows, :columns] & inner
    left = rest.mask[:rows, :columns] & inner
    assert left.sum() <= 0.1 * on_tissue.sum()
    near = binary_dilation(covered.reshape(rows, 16, columns, 16).any(axis=(1, 3)), iterations=6)  # 48 µm
    lost = (tissue.mask & ~rest.mask)[:rows, :columns]
    assert not (lost & ~near).any()


def test_a_bubble_is_left_out_with_its_inside(tmp_path: Path, plain: Pixels) -> None:
    pixels, inside = paint_bubble(plain, 0.5, MIDDLE, 250.0)
    tissue = tissue_of(painted(tmp_path, pixels))
    assert set(shares(tissue)) == {BUBBLE}
    assert tissue.artefacts is not None
    area = tissue.artefacts.masks[BUBBLE].sum() * 16.0**2
    assert area == pytest.approx(inside.sum() * 0.25, rel=0.25)


def test_what_a_pen_encircles_is_no_bubble(tmp_path: Path, plain: Pixels) -> None:
    """Pathologists encircle the tumour: it must not be left out."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] * 0.5
    distance = np.hypot(x - MIDDLE[0], y - MIDDLE[1])
    ring = (distance > 200) & (distance < 400)
    pixels = plain.copy()
    pixels[ring] = (pixels[ring] * 0.2).astype(np.uint8)
    pixels[ring] = pixels[ring].mean(axis=-1, keepdims=True).astype(np.uint8)
    tissue = tissue_of(painted(tmp_path, pixels))
    assert BUBBLE not in shares(tissue) and PEN in shares(tissue)
    assert tissue.artefacts is not None
    row, column = (round(n / 16) for n in MIDDLE[::-1])
    assert not tissue.artefacts.masks[PEN][row, column]


def test_a_blurred_part_is_found(tmp_path: Path, plain: Pixels) -> None:
    pixels, _ = paint_blur(plain, 0.5, MIDDLE, 330.0, 14.0)
    assert set(shares(tissue_of(painted(tmp_path, pixels)))) == {BLUR}


def test_a_fold_is_found(tmp_path: Path) -> None:
    """A band of twice the density and the same hue on even tissue; a round patch of it is none."""
    colours = np.full((120, 120, 3), (200, 140, 180), np.uint8)
    colours[:20] = 240  # glass
    dense = (255 * (colours[0:1, 0:1] * 0 + np.array([200, 140, 180])) / 255).astype(np.float64)
    double = (240 * (dense / 240) ** 2).astype(np.uint8)
    is_tissue = np.zeros((240, 240), np.bool_)
    is_tissue[40:] = True
    sharpness = np.ones((15, 15), np.float32)
    folded = colours.copy()
    folded[30:110, 60:65] = double
    artefacts = find_artefacts(folded, sharpness, is_tissue, 8.0)
    assert set(artefacts.shares) == {FOLD}
    assert exclude_artefacts(is_tissue, artefacts).tolist() == is_tissue.tolist(), "dense carcinoma can look like one"
    y, x = np.mgrid[:120, :120]
    round_patch = colours.copy()
    round_patch[np.hypot(y - 70, x - 60) < 12] = double
    assert find_artefacts(round_patch, sharpness, is_tissue, 8.0).shares == {}
    network = colours.copy()  # as glands and lymphocytes make it on a small crop
    network[22:116:6, 2:118] = network[22:116, 2:118:6] = double
    network[22:116, :3] = double
    assert find_artefacts(network, sharpness, is_tissue, 8.0).shares == {}


def test_sharpness_is_a_mean_over_cells() -> None:
    grey = np.zeros((40, 33), np.uint8)
    smooth = np.zeros((40, 33), np.float32)
    smooth[:16, :16] = 2.0
    assert measure_sharpness(grey, smooth).tolist() == [[2.0, 0.0], [0.0, 0.0]]


def test_much_is_a_warning_and_little_is_none() -> None:
    assert ArtefactShares({PEN: 0.04}, False).warning == ""
    text = ArtefactShares({PEN: 0.19, FOLD: 0.004}, False).warning
    assert "pen on 19 %, folds on less than 1 %" in text and "--exclude-artefacts" in text
    assert "were left out" in ArtefactShares({PEN: 0.19}, True).warning
    both = ArtefactShares({PEN: 0.19, FOLD: 0.08}, True).warning
    assert both.endswith("which were left out: pen on 19 %; folds on 8 % read as tissue")
    folds = [ArtefactShares({FOLD: 0.08}, excluded).warning for excluded in (False, True)]
    assert folds == ["artefacts on the tissue, which were read as tissue: folds on 8 %"] * 2
    assert STEP == 2
