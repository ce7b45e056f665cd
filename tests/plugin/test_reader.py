"""What the reader claims, what it leaves to others, and that it opens without reading."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from core.fake_slides import one_sentence, speckled, write_tiff
from napari_lrmil.core.errors import ResolutionError, SlideError
from napari_lrmil.core.slide import Slide
from napari_lrmil.plugin.reader import get_reader, read_slides


def test_a_slide_opens_without_decoding_a_pixel_at_its_size_in_um(
    slide_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Slide] = []
    initialise = Slide.__init__
    monkeypatch.setattr(Slide, "__init__", lambda self, *a, **k: (opened.append(self), initialise(self, *a, **k))[1])
    reader = get_reader(str(slide_path))
    assert reader is not None
    [(data, options, kind)] = reader(str(slide_path))
    assert kind == "image" and options["rgb"] and options["multiscale"]
    assert options["scale"] == (0.5, 0.5) and options["units"] == ("um", "um")
    assert [level.shape for level in data] == [(1000, 1280, 3), (250, 320, 3)]
    assert [slide.pixels_decoded for slide in opened] == [0]


def test_several_slides_become_several_layers(slide_path: Path) -> None:
    paths = [str(slide_path), str(slide_path)]
    reader = get_reader(paths)
    assert reader is not None
    assert len(reader(paths)) == 2


def test_ordinary_pictures_are_left_to_other_readers(tmp_path: Path, slide_path: Path) -> None:
    pixels = speckled(300, 200)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    tifffile.imwrite(tmp_path / "strips.tif", pixels)
    tifffile.imwrite(tmp_path / "grey.tif", pixels[..., 0].astype(np.uint16), tile=(64, 64))
    (tmp_path / "not.svs").write_bytes(b"hello")
    (tmp_path / "folder").mkdir()
    for name in ("photo.png", "strips.tif", "grey.tif", "not.svs", "folder", "missing.svs"):
        assert get_reader(str(tmp_path / name)) is None, name
    assert get_reader([str(slide_path), str(tmp_path / "photo.png")]) is None


def test_a_slide_without_resolution_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "bare.tif", speckled(600, 400))
    reader = get_reader(path)
    assert reader is not None
    with pytest.raises(ResolutionError, match="microns per pixel") as refused:
        reader(path)
    assert one_sentence(refused.value)
    [(_, options, _)] = read_slides(path, mpp=0.25)
    assert options["scale"] == (0.25, 0.25)


def test_a_slide_that_is_cut_short_is_refused_in_one_sentence(tmp_path: Path, slide_path: Path) -> None:
    path = tmp_path / "short.tif"
    path.write_bytes(slide_path.read_bytes()[: 1 << 12])
    with pytest.raises(SlideError) as refused:
        read_slides(path)
    assert one_sentence(refused.value)


def test_real_slides_open(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "slides" / "derived" / "CMU-1-Small-Region_pyramid_aperio.svs"
    reader = get_reader(path)
    assert reader is not None
    [(data, options, _)] = reader(path)
    assert options["scale"] == pytest.approx((0.499, 0.499))
    assert np.asarray(data[-1]).std() > 5
    copy = tmp_path / "dicom"
    files = sorted(shared_data.glob("slides/**/*.dcm"))
    if files:
        shutil.copytree(files[0].parent, copy)
        assert get_reader(copy) is not None
