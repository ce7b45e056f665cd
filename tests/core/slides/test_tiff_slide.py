"""TIFF and OME-TIFF slides that OpenSlide cannot open or reads wrongly: levels, pixel formats, orientation, units."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from openslide import OpenSlide

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.geometry import BoxLevel0
from napari_lrmil.core.phantom import VARIANTS
from napari_lrmil.core.slides.pixel_source import PixelSourceHandle
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.slides.tiff_layout import find_layout
from napari_lrmil.core.slides.tiff_slide import TiffSource
from support.fake_slides import one_sentence, reduced
from support.pictures import rectangles

Picture = NDArray[Any]
BASE = rectangles(5, 900, 700)
TILED: dict[str, Any] = {"tile": (128, 128), "metadata": None, "resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"}
OME: dict[str, Any] = {"tile": (128, 128), "photometric": "rgb"}


def write(path: Path, picture: Picture = BASE, **tags: Any) -> Path:
    tifffile.imwrite(path, picture, **{**TILED, "photometric": "rgb", **tags})
    return path


def whole(slide: Slide) -> Picture:
    return slide.read_level(0, 0, 0, slide.width, slide.height)


def write_ome(path: Path, *levels: Picture, size: tuple[float, str] = (0.25, "µm"), **metadata: Any) -> Path:
    """Write an OME-TIFF with the lower levels in SubIFDs."""
    sizes = {f"PhysicalSize{a}{u}": v for a in "XY" for u, v in (("", size[0]), ("Unit", size[1]))}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(levels[0], subifds=len(levels) - 1, metadata={"axes": "YXS", **sizes, **metadata}, **OME)
        for level in levels[1:]:
            file.write(level, subfiletype=1, metadata=None, **OME)
    return path


@pytest.mark.parametrize("size", [(0.5, "µm"), (0.5, "μm"), (500, "nm"), (5e-5, "cm")])
def test_an_ome_file_of_one_level_has_the_size_of_its_metadata(tmp_path: Path, size: tuple[float, str]) -> None:
    """OpenSlide opens such a file rightly, but reads neither the size nor its unit."""
    with Slide(write_ome(tmp_path / "a.ome.tif", BASE, size=size)) as slide:
        assert (slide.mpp.x, slide.mpp.y) == pytest.approx((0.5, 0.5)) and slide.mpp.source == "OME metadata"


# ---------------------------------------------------------------- levels


@pytest.mark.parametrize("size", [(0.25, "µm"), (250.0, "nm"), (2.5e-4, "mm"), (2.5e-5, "cm"), (2.5e-7, "m")])
def test_an_ome_tiff_opens_with_all_levels_and_its_own_pixel_size(tmp_path: Path, size: tuple[float, str]) -> None:
    path = write_ome(tmp_path / "a.ome.tif", BASE, reduced(BASE, 2.0), reduced(BASE, 4.0), size=size)
    with Slide(path) as slide:
        assert [level.width for level in slide.levels] == [900, 450, 225] and slide.warnings == ()
        assert (slide.mpp.x, slide.mpp.y) == pytest.approx((0.25, 0.25)) and slide.mpp.source == "OME metadata"
        assert (slide.vendor, slide.reader.name) == ("ome-tiff", "tifffile") and "3 levels" in slide.reader.reason
        np.testing.assert_array_equal(whole(slide), BASE)
        np.testing.assert_array_equal(slide.read_level(2, 11, 7, 90, 80), reduced(BASE, 4.0)[7:87, 11:101])
        again = pickle.loads(pickle.dumps(slide))
        np.testing.assert_array_equal(whole(again), BASE)
        again.close()


def test_the_slide_is_read_and_not_the_label(tmp_path: Path) -> None:
    label = rectangles(9, 400, 400)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        pictures = (("label image", rectangles(8, 1000, 900), 20.0), ("macro", label, 30.0), ("scan", BASE, 0.5))
        for name, picture, mpp in pictures:
            sizes = {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
            file.write(picture, metadata={"axes": "YXS", "Name": name, **sizes}, **OME)
    with Slide(tmp_path / "a.ome.tif") as slide:
        assert slide.mpp.x == 0.5
        np.testing.assert_array_equal(whole(slide), BASE)


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_pages_that_are_not_marked_as_reduced_are_levels(tmp_path: Path, order: tuple[int, int]) -> None:
    levels = [BASE, reduced(BASE, 2.0), reduced(BASE, 4.0)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for i in (0, *order):
            file.write(levels[i], photometric="rgb", **TILED)
    with Slide(tmp_path / "a.tif") as slide:
        assert [level.width for level in slide.levels] == [900, 450, 225] and slide.mpp.x == pytest.approx(0.5)
        slide.read(BoxLevel0(0, 0, 512, 512), (128, 128))
        assert slide.pixels_decoded == 128**2, "no more than the level that is asked for"


def test_a_page_of_another_picture_is_no_level(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for picture in (BASE, rectangles(6, 450, 350), rectangles(7, 300, 300)):
            file.write(picture, photometric="rgb", **TILED)
    with Slide(tmp_path / "a.tif") as slide:
        assert len(slide.levels) == 1
        assert "level 1 of the file (450 x 350 px) is left out" in slide.warnings[0] and len(slide.warnings) == 1


def test_pages_that_lead_back_to_an_earlier_one_are_read_once(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for picture in (BASE, reduced(BASE, 2.0)):
            file.write(picture, **TILED, photometric="rgb")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        first, last = (page.offset for page in file.pages)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    end = last + 2 + 12 * int.from_bytes(content[last : last + 2], "little")
    content[end : end + 4] = first.to_bytes(4, "little")
    (tmp_path / "a.tif").write_bytes(content)
    with Slide(tmp_path / "a.tif") as slide:
        assert [level.width for level in slide.levels] == [900, 450]
        np.testing.assert_array_equal(whole(slide), BASE)


def test_the_projects_own_ome_phantom_opens_with_all_levels(tmp_path: Path) -> None:
    from napari_lrmil.core.phantom import make_cohort

    assert "ome" in VARIANTS
    list(make_cohort(tmp_path, 1, (1024, 768), 1, variants=["ome"]))
    [path] = tmp_path.glob("*.ome.tif")
    with Slide(path) as slide:
        assert len(slide.levels) > 1 and slide.mpp.x == pytest.approx(0.5) and slide.warnings == ()


# ---------------------------------------------------------------- pixel formats


@pytest.mark.parametrize("codec", ["jpeg2000", "webp", "zstd", "png", "lzw", "lzma", "deflate", "jpegxl", "lerc", None])
def test_lossless_compressions_give_the_pixels(tmp_path: Path, codec: str | None) -> None:
    args = {"lossless": True} if codec in ("webp", "jpegxl") else {"reversible": True} if codec == "jpeg2000" else None
    with Slide(write(tmp_path / "a.tif", compression=codec, compressionargs=args)) as slide:
        np.testing.assert_array_equal(whole(slide), BASE)
        assert slide.mpp.x == pytest.approx(0.5)


def test_strips_planes_and_big_endian(tmp_path: Path) -> None:
    files = (
        write(tmp_path / "strips.tif", tile=None, rowsperstrip=64),
        write(tmp_path / "planes.tif", BASE.transpose(2, 0, 1).copy(), planarconfig="separate", compression="png"),
        write(tmp_path / "big.tif", byteorder=">", bigtiff=True, compression="png"),
    )
    for path in files:
        with Slide(path) as slide:
            np.testing.assert_array_equal(whole(slide), BASE)


def test_a_fourth_sample_of_no_stated_kind_is_no_opacity(tmp_path: Path) -> None:
    padded = np.concatenate([BASE, np.zeros_like(BASE[..., :1])], axis=2)
    with Slide(write(tmp_path / "a.tif", padded, extrasamples=["unspecified"])) as slide:
        np.testing.assert_array_equal(whole(slide), BASE)


def test_opacity_is_blended_with_white(tmp_path: Path) -> None:
    alpha = np.full_like(BASE[..., :1], 255)
    alpha[:, :450] = 0
    rgba = np.concatenate([BASE, alpha], axis=2)
    for kind in ("unassalpha", "assocalpha"):
        with Slide(write(tmp_path / f"{kind}.tif", rgba, extrasamples=[kind], compression="png")) as slide:
            assert slide.reader.name == "tifffile" and (whole(slide)[:, :450] == 255).all()
            np.testing.assert_array_equal(whole(slide)[:, 450:], BASE[:, 450:])


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_samples_of_cameras_are_read_in_their_own_range_and_said_so(tmp_path: Path, bits: int) -> None:
    deep = np.rint(np.clip(BASE.astype(np.float64) + 10, 0, 255) / 255 * (2**bits - 1)).astype(np.uint16)
    deep[0, 0] = 2**bits - 1
    with Slide(write(tmp_path / "a.tif", deep)) as slide:
        expected = np.clip(BASE.astype(int) + 10, 0, 255)
        assert np.abs(whole(slide)[1:].astype(int) - expected[1:]).max() <= 1
        assert [f"read as {bits} bits" in text for text in slide.warnings] == [True] * (bits < 16)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_grey_slides(tmp_path: Path, photometric: str) -> None:
    grey = BASE[..., 1]
    stored = grey if photometric == "minisblack" else 255 - grey
    with Slide(write(tmp_path / "a.tif", stored, photometric=photometric, compression="png")) as slide:
        np.testing.assert_array_equal(whole(slide), np.repeat(grey[..., None], 3, axis=2))


def test_palettes(tmp_path: Path) -> None:
    index = (BASE[..., 0] // 8).astype(np.uint8)
    colours = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)
    path = write(tmp_path / "a.tif", index, photometric="palette", colormap=colours * 257, compression="png")
    with Slide(path) as slide:
        np.testing.assert_array_equal(whole(slide), colours.T[index])


def test_three_planes_of_an_ome_tiff_are_red_green_and_blue_and_said_so(tmp_path: Path) -> None:
    planes = BASE.transpose(2, 0, 1).copy()
    metadata = {"axes": "CYX", "Channel": {"Name": ["Red", "Green", "Blue"]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", planes, tile=(128, 128), photometric="minisblack", metadata=metadata)
    with Slide(tmp_path / "a.ome.tif") as slide:
        np.testing.assert_array_equal(whole(slide), BASE)
        assert "three grey planes" in slide.warnings[0]


@pytest.mark.parametrize(
    ("axes", "shape", "names", "words"),
    [
        ("CYX", (3, 300, 400), ["DAPI", "FITC", "TRITC"], "3 channels of 8 bits (DAPI, FITC, TRITC)"),
        ("CYX", (8, 300, 400), None, "8 channels"),
        ("ZYX", (5, 300, 400), None, "a stack (5 along Z)"),
    ],
)
def test_what_is_no_brightfield_plane_is_refused_with_the_reason(
    tmp_path: Path, axes: str, shape: tuple[int, ...], names: list[str] | None, words: str
) -> None:
    metadata = {"axes": axes} | ({"Channel": {"Name": names}} if names else {})
    picture = np.zeros(shape, np.uint8)
    tifffile.imwrite(tmp_path / "a.ome.tif", picture, tile=(128, 128), photometric="minisblack", metadata=metadata)
    with pytest.raises(SlideError) as caught:
        Slide(tmp_path / "a.ome.tif")
    assert words in str(caught.value) and one_sentence(caught.value)


def test_three_planes_with_a_pyramid_each_open_with_all_levels(tmp_path: Path) -> None:
    tags: dict[str, Any] = {"tile": (128, 128), "photometric": "minisblack"}
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        file.write(BASE.transpose(2, 0, 1), subifds=1, metadata={"axes": "CYX"}, **tags)
        file.write(reduced(BASE, 4.0).transpose(2, 0, 1), subfiletype=1, metadata=None, **tags)
    with Slide(tmp_path / "a.ome.tif") as slide:
        assert [level.width for level in slide.levels] == [900, 225]
        np.testing.assert_array_equal(slide.read_level(1, 0, 0, 225, 175), reduced(BASE, 4.0))


def test_of_several_pictures_of_one_size_the_first_is_read_and_it_says_so(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for picture in (BASE, rectangles(8, 900, 700), rectangles(9, 900, 700)):
            file.write(picture, photometric="rgb", **TILED)
    with Slide(tmp_path / "a.tif") as slide:
        np.testing.assert_array_equal(whole(slide), BASE)
        assert "3 pictures of the slide's size" in slide.warnings[0]


@pytest.mark.parametrize(
    ("picture", "tags", "words"),
    [
        (BASE.astype(np.float32), {}, "samples of 32 bits are float32"),
        (np.concatenate([BASE, BASE[..., :2]], axis=2), {"extrasamples": ["unspecified"] * 2}, "5 samples per pixel"),
    ],
)
def test_samples_that_openslide_reads_wrongly_are_refused(
    tmp_path: Path, picture: Picture, tags: dict[str, Any], words: str
) -> None:
    with pytest.raises(SlideError, match=words) as caught:
        Slide(write(tmp_path / "a.tif", picture, **tags))
    assert one_sentence(caught.value)


# ---------------------------------------------------------------- orientation, and what OpenSlide reads


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", [".tif", ".svs"])
def test_a_turned_slide_is_read_upright(tmp_path: Path, orientation: int, ending: str) -> None:
    flipped = (BASE, BASE[:, ::-1], BASE[::-1, ::-1], BASE[::-1])[(orientation - 1) % 4]
    stored = flipped.transpose(1, 0, 2) if orientation > 4 else flipped
    tags: dict[str, Any] = {"description": "Aperio Image Library v12\r\n|MPP = 0.5"} if ending == ".svs" else {}
    path = write(tmp_path / f"a{ending}", stored.copy(), extratags=[(274, "H", 1, orientation, True)], **tags)
    with Slide(path) as slide:
        assert (slide.width, slide.height) == (900, 700)
        np.testing.assert_array_equal(whole(slide), BASE)
        assert [f"orientation {orientation}" in text for text in slide.warnings] == [True] * (orientation != 1)
        assert (slide.reader.name == "tifffile") == (orientation != 1)


def test_openslide_on_request_is_refused_where_it_would_read_wrongly(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", extratags=[(274, "H", 1, 6, True)])
    with pytest.raises(SlideError, match=r"does not read this file rightly.*--reader auto") as caught:
        Slide(path, reader="openslide")
    assert one_sentence(caught.value)


@pytest.mark.parametrize("codec", ["jpeg", "lzw", "deflate", "zstd", None])
def test_both_readers_give_the_same_pixels_where_openslide_is_right(tmp_path: Path, codec: str | None) -> None:
    path = write(tmp_path / "a.tif", compression=codec)
    with tifffile.TiffFile(path) as file, OpenSlide(path) as theirs:
        mine = PixelSourceHandle(TiffSource(file, find_layout(file)), {})
        for corner in ((0, 0), (131, 77), (-20, 650), (850, -10)):
            a, b = (np.asarray(handle.read_region(corner, 0, (200, 150))) for handle in (mine, theirs))
            np.testing.assert_array_equal(a[..., 3], b[..., 3])
            np.testing.assert_array_equal(a[a[..., 3] > 0], b[b[..., 3] > 0])


def test_a_file_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", compression="png")
    content = path.read_bytes()
    with tifffile.TiffFile(path) as file:
        end = file.pages.first.dataoffsets[-1]
    path.write_bytes(content[: end + 5])
    with pytest.raises(SlideError) as caught:
        Slide(path)
    assert one_sentence(caught.value)


def test_a_tile_that_does_not_decode_is_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", compression="png")
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages.first.dataoffsets[7], file.pages.first.databytecounts[7]
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff" * count)
    with Slide(path) as slide, pytest.raises(SlideError, match="damaged"):
        whole(slide)
