"""The tissue mask: an L lies where it lies, in shares of HR cells, whatever the level it was read from."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.filters import threshold_otsu

from napari_lrmil.core.errors import TissueError
from napari_lrmil.core.geometry import Bounds, Lattice, Mpp, PatchPlan
from napari_lrmil.core.patching.tissue import Tissue, TissueConfig, find_tissue, otsu_threshold, read_mask, write_mask
from napari_lrmil.core.slides.slide import BLOCK_PX, Slide
from support.fake_slides import GLASS, TISSUE, Array, FakeSlide, fake_slide, glass, l_shape, resolution, write_tiff

PLAN = PatchPlan(0.5, 2.0, 64, 64)  # HR 32 µm, LR 128 µm


def lattice_of(slide: Slide, plan: PatchPlan = PLAN) -> Lattice:
    return plan.lattice(slide.bounds, slide.mpp)


@pytest.mark.parametrize("downsamples", [(1.0,), (1.0, 4.002, 16.05)])
def test_an_l_of_tissue_is_found_at_its_cells_and_its_edges_in_shares(
    tmp_path: Path, downsamples: tuple[float, ...]
) -> None:
    """HR cells are 64 x 80 px (mpp 0.5 x 0.4); the upright ends at x = 288, 4.5 cells, the foot starts at y = 760."""
    fake = FakeSlide(l_shape(1024, 1280, (288, 520)), downsamples, resolution(0.5, 0.4))
    with fake_slide(tmp_path, fake) as slide:
        lattice = lattice_of(slide)
        shares = find_tissue(slide, lattice).shares()
    assert lattice.cell == (64, 80) and shares.shape == (16, 16)
    assert (shares[:9, :4] > 0.99).all() and (shares[10:, :] > 0.95).all()
    assert (shares[:9, 5:] < 0.01).all()
    np.testing.assert_allclose(shares[:9, 4], 0.5, atol=0.15)
    np.testing.assert_allclose(shares[9, 6:15], 0.5, atol=0.15)


def test_tissue_through_real_openslide(tmp_path: Path) -> None:
    with Slide(write_tiff(tmp_path / "a.tif", l_shape(1024, 768, (256, 128)), (1.0, 4.0), mpp=(0.5, 0.5))) as slide:
        shares = find_tissue(slide, lattice_of(slide)).shares()
    kept = shares >= 0.25
    expected = np.zeros((12, 16), bool)
    expected[:, :4] = True
    expected[10:, :] = True
    assert kept.tolist() == expected.tolist()


def test_glass_alone_has_no_tissue_however_its_noise_is_cut(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = (glass(1024, 512).astype(int) + rng.integers(-3, 4, (512, 1024, 3))).astype(np.uint8)
    with fake_slide(tmp_path, FakeSlide(base, (1.0, 4.0), resolution(0.5))) as slide:
        assert find_tissue(slide, lattice_of(slide)).shares().max() == 0


def test_uniform_glass_has_no_tissue(tmp_path: Path) -> None:
    with fake_slide(tmp_path, FakeSlide(glass(600, 300), properties=resolution(0.5))) as slide:
        assert not find_tissue(slide, lattice_of(slide)).mask.any()


def test_a_slide_full_of_tissue_is_not_cut_in_two(tmp_path: Path) -> None:
    base = np.empty((512, 768, 3), np.uint8)
    base[:, :400], base[:, 400:] = TISSUE, (150, 70, 130)
    with fake_slide(tmp_path, FakeSlide(base, properties=resolution(0.5))) as slide:
        tissue = find_tissue(slide, lattice_of(slide))
    assert tissue.shares().min() > 0.9
    assert tissue.threshold <= TissueConfig().highest_chroma


def test_black_and_grey_are_no_tissue(tmp_path: Path) -> None:
    """Pen, tape and the black of fluorescence: dark, or without colour."""
    base = l_shape(1024, 512, (256, 128))
    base[:256, 512:768] = (12, 3, 40)
    base[:256, 768:] = (120, 120, 122)
    with fake_slide(tmp_path, FakeSlide(base, properties=resolution(0.5))) as slide:
        shares = find_tissue(slide, lattice_of(slide)).shares()
    assert shares[:3, 9:].max() == 0
    assert shares[:, :3].min() > 0.9


def test_specks_are_dust_and_small_holes_are_lumen(tmp_path: Path) -> None:
    base = l_shape(1024, 512, (512, 128))
    base[100:160, 700:760] = TISSUE  # 30 x 30 µm: 900 µm²
    base[200:260, 100:160] = 244
    with fake_slide(tmp_path, FakeSlide(base, properties=resolution(0.5))) as slide:
        shares = find_tissue(slide, lattice_of(slide)).shares()
    assert shares[:5, 9:].max() == 0
    assert shares[:, :7].min() > 0.95


def test_past_the_slides_edge_is_no_tissue(tmp_path: Path) -> None:
    """900 px are 14.06 cells: the lattice reaches on to 16."""
    base = np.full((512, 900, 3), TISSUE, np.uint8)
    with fake_slide(tmp_path, FakeSlide(base, properties=resolution(0.5))) as slide:
        shares = find_tissue(slide, lattice_of(slide)).shares()
    assert shares.shape == (8, 16)
    assert shares[:, :14].min() > 0.9 and shares[:, 15:].max() == 0


def test_cells_do_not_depend_on_how_far_the_lattice_reaches(tmp_path: Path) -> None:
    """1000 x 712 px: the lattice reaches on to 1024 x 768 for n = 2 and 4, and to 1024 x 1024 for n = 8.

    Faint tissue, whose threshold Otsu chooses: glass that is not there would pull it down.
    """
    rng = np.random.default_rng(2)
    base = l_shape(1000, 712, (420, 250)).astype(int)
    base[:, :420] = np.array((228, 208, 222)) + rng.integers(-9, 10, (712, 420, 1)) * np.array((0, 1, 0))
    base[462:, 420:] = (230, 196, 219)
    base[:330, 500:] = (238, 223, 232)
    plans = [PatchPlan(0.5, 0.5 * n, 64, 64) for n in (2, 4, 8)]
    fake = FakeSlide(base.clip(0, 255).astype(np.uint8), (1.0, 4.0), resolution(0.5))
    with fake_slide(tmp_path, fake) as slide:
        found = [find_tissue(slide, lattice_of(slide, plan)) for plan in plans]
    assert [tissue.lattice.rows for tissue in found] == [12, 12, 16]
    assert len({tissue.threshold for tissue in found}) == 1
    assert TissueConfig().lowest_chroma < found[0].threshold < TissueConfig().highest_chroma
    cells = [tissue.shares()[:12, :16] for tissue in found]
    np.testing.assert_array_equal(cells[0], cells[1])
    np.testing.assert_array_equal(cells[0], cells[2])
    assert 0 < (cells[0] >= 0.25).mean() < 1
    assert found[2].shares()[12:].max() == 0


@pytest.mark.parametrize(("width", "height"), [(6400, 700), (700, 6400)])
def test_single_level_slides_are_read_in_bounded_blocks_without_seams(tmp_path: Path, width: int, height: int) -> None:
    base = np.full((height, width, 3), TISSUE, np.uint8)
    fake = FakeSlide(base, properties=resolution(0.5))
    with fake_slide(tmp_path, fake) as slide:
        shares = find_tissue(slide, lattice_of(slide)).shares()
    assert len(fake.reads) > 2
    assert max(max(size) for _, _, size in fake.reads) <= BLOCK_PX + 2
    assert shares[: height // 64, : width // 64].min() > 0.95


def test_the_mask_is_read_from_a_coarse_level_where_there_is_one(tmp_path: Path) -> None:
    fake = FakeSlide(l_shape(2048, 1024, (512, 256)), (1.0, 4.0, 16.0), resolution(0.5))
    with fake_slide(tmp_path, fake) as slide:
        find_tissue(slide, lattice_of(slide))
    assert {level for _, level, _ in fake.reads} == {2}


def test_a_mask_that_does_not_divide_into_the_lattice_is_refused_with_both_shapes() -> None:
    lattice = PLAN.lattice(Bounds(0, 0, 512, 256), Mpp(0.5, 0.5))
    with pytest.raises(ValueError, match=r"17 x 32.*4 x 8"):
        Tissue(np.zeros((17, 32), bool), lattice, 10.0)


def test_shares_are_means_of_each_cells_own_mask_pixels() -> None:
    lattice = PLAN.lattice(Bounds(0, 0, 512, 256), Mpp(0.5, 0.5))
    mask = np.zeros((16, 32), bool)
    mask[4:8, 8:10] = True  # cell of row 1, column 2: 4 x 2 of 4 x 4
    shares = Tissue(mask, lattice, 10.0).shares()
    assert shares[1, 2] == 0.5 and shares.sum() == 0.5


def test_the_shared_slides_tissue_is_found(shared_data: Path) -> None:
    """The svs (one level) and the pyramid of it have the same tissue, and it is neither nothing nor everything."""
    found = []
    for name in ("CMU-1-Small-Region.svs", "derived/CMU-1-Small-Region_pyramid_aperio.svs"):
        with Slide(shared_data / "slides" / name) as slide:
            found.append(find_tissue(slide, lattice_of(slide)).shares() >= 0.25)
    assert 0.3 < found[0].mean() < 0.98
    assert (found[0] != found[1]).mean() < 0.02


# ---------------------------------------------------------------- the same by libraries alone


def by_libraries(pixels: Array, config: TissueConfig, largest_px: int) -> tuple[Array, float]:
    """Return mask and threshold as they are defined, whatever that costs."""
    from scipy.ndimage import gaussian_filter
    from skimage.filters import threshold_otsu
    from skimage.morphology import remove_small_holes, remove_small_objects

    chroma = pixels.max(axis=2) - pixels.min(axis=2)
    smooth = gaussian_filter(chroma.astype(np.float32), 1.0)
    found = float(threshold_otsu(smooth)) if np.ptp(chroma) > 0 else config.highest_chroma
    threshold = float(np.clip(found, config.lowest_chroma, config.highest_chroma))
    inside = (smooth > threshold) & ~(pixels.mean(axis=2) < config.darkest)
    return remove_small_holes(remove_small_objects(inside, max_size=largest_px), max_size=largest_px), threshold


@pytest.mark.parametrize(("lowest", "highest"), [(12.0, 28.0), (0.0, 255.0)])
@pytest.mark.parametrize("seed", [3, 4, 5])
def test_masks_are_what_the_libraries_alone_would_make(
    tmp_path: Path, seed: int, lowest: float, highest: float
) -> None:
    """Painted tissue, a pen's black, specks; where Otsu's choice is not clipped it has to be the same bin too."""
    from napari_lrmil.core.phantom import LESION, PhantomSlide, paint

    base = paint(PhantomSlide("p", LESION, seed, (1536, 1024))).pixels.copy()
    base[100:140, 200:900] = (25, 20, 31)
    base[600:606, 30:1500:17] = TISSUE
    config = TissueConfig(mask_um=1.0, lowest_chroma=lowest, highest_chroma=highest, smallest_um2=300)
    with fake_slide(tmp_path, FakeSlide(base, properties=resolution(0.5))) as slide:
        found = find_tissue(slide, lattice_of(slide), config)
        k = found.mask.shape[0] // found.lattice.rows
        pixels = slide.read(found.lattice.box, (found.mask.shape[1], found.mask.shape[0]))
    expected, threshold = by_libraries(pixels, config, int(300 / (found.lattice.hr_um / k) ** 2))
    assert found.threshold == pytest.approx(threshold, abs=1e-4)
    np.testing.assert_array_equal(found.mask, expected)
    assert 0.05 < found.mask.mean() < 0.95


@given(st.lists(st.integers(0, 10**7), min_size=2, max_size=256), st.floats(-3, 3), st.floats(1e-3, 300))
def test_otsus_threshold_is_scikit_images_to_the_last_bit(heights: list[int], low: float, width: float) -> None:
    counts = np.array(heights)
    counts[[0, -1]] += 1
    centers = low + (np.arange(len(counts)) + 0.5) * width / len(counts)
    assert otsu_threshold(counts, centers) == threshold_otsu(hist=(counts, centers))


# ---------------------------------------------------------------- two sizes of mask pixels


def spotted() -> Array:
    """Return 3072 x 2304 px of noisy glass with ellipses of pale tissue, holes and specks, from whole numbers alone."""
    rng = np.random.default_rng(14)
    y, x = np.mgrid[:2304, :3072]
    base = np.full((2304, 3072, 3), GLASS, np.int16)
    for is_tissue in [True] * 40 + [False] * 25:
        left, top, wide, high = (int(v) for v in rng.integers((0, 0, 8, 8), (3072, 2304, 400, 300)))
        inside = (x - left) ** 2 * high**2 + (y - top) ** 2 * wide**2 < (wide * high) ** 2
        base[inside] = (232, 206, 224) - rng.integers(0, (9, 20, 9)) if is_tissue else GLASS
    base += rng.integers(-9, 10, base.shape, dtype=np.int16)
    return base.clip(0, 255).astype(np.uint8)


DIGESTS = {  # of the masks of version 0.1: bundles that say 8 µm keep their very mask
    8.0: "14d46545c46292e2",
    16.0: "c4935c2dbbf019be",
}


@pytest.mark.parametrize("mask_um", [8.0, 16.0])
def test_a_mask_stays_the_same_to_the_last_pixel(tmp_path: Path, mask_um: float) -> None:
    plan = PatchPlan(0.5, 2.0, 256, 256)  # HR 128 µm
    with fake_slide(tmp_path, FakeSlide(spotted(), (1.0, 4.0, 16.0), resolution(0.5))) as slide:
        tissue = find_tissue(slide, lattice_of(slide, plan), TissueConfig(mask_um=mask_um))
    assert tissue.mask.shape == (12 * 128 / mask_um, 12 * 128 / mask_um)
    assert 0.2 < tissue.mask.mean() < 0.8
    assert hashlib.sha256(tissue.mask.tobytes()).hexdigest()[:16] == DIGESTS[mask_um]


def test_a_coarser_mask_gives_nearly_the_same_shares(tmp_path: Path) -> None:
    plan = PatchPlan(0.5, 2.0, 256, 256)
    with fake_slide(tmp_path, FakeSlide(spotted(), (1.0, 4.0, 16.0), resolution(0.5))) as slide:
        fine, coarse = (find_tissue(slide, lattice_of(slide, plan), TissueConfig(mask_um=um)) for um in (8, 16))
    assert np.abs(fine.shares() - coarse.shares()).mean() < 0.02
    assert ((fine.shares() >= 0.25) != (coarse.shares() >= 0.25)).sum() <= 2


def test_an_edited_mask_is_refused_with_another_size_of_pixels(tmp_path: Path) -> None:
    plan = PatchPlan(0.5, 2.0, 256, 256)
    with fake_slide(tmp_path, FakeSlide(spotted(), (1.0, 4.0, 16.0), resolution(0.5))) as slide:
        fine, coarse = (find_tissue(slide, lattice_of(slide, plan), TissueConfig(mask_um=um)) for um in (8, 16))
    write_mask(tmp_path / "tissue.png", coarse.mask)
    np.testing.assert_array_equal(read_mask(tmp_path / "tissue.png", coarse), coarse.mask)
    with pytest.raises(TissueError, match=r"96 x 96 px, expected 192 x 192"):
        read_mask(tmp_path / "tissue.png", fine)


def test_cells_of_very_many_mask_pixels_are_counted_in_full() -> None:
    """A column of 300 pixels of tissue does not fit into a byte."""
    lattice = PLAN.lattice(Bounds(0, 0, 128, 128), Mpp(0.5, 0.5))
    mask = np.ones((lattice.rows * 300, lattice.columns * 300), bool)
    assert (Tissue(mask, lattice, 10.0).shares() == 1).all()


def test_tissue_needs_neither_scipys_packages_nor_scikit_image(tmp_path: Path) -> None:
    """Their imports would take 0.25 CPU-seconds of every short run. Pixels of 0.499 µm are averaged from fractions."""
    path = write_tiff(tmp_path / "a.tif", l_shape(1024, 768, (256, 128)), (1.0, 4.0), mpp=(0.499, 0.499))
    code = (
        "import sys\n"
        "from napari_lrmil.core.geometry import PatchPlan\n"
        "from napari_lrmil.core.patching.grid import find_tissue_grid\n"
        "from napari_lrmil.core.slides.slide import Slide\n"
        "with Slide(sys.argv[1]) as slide:\n"
        "    assert len(find_tissue_grid(slide, PatchPlan(0.5, 2.0, 64, 64)).grid.lr_index) > 0\n"
        "print(sorted(sys.modules.keys() & {'scipy.sparse', 'scipy.ndimage', 'scipy.stats', 'skimage', 'torch'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
