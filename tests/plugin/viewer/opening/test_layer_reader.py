"""Reader of slides: which files it accepts, that it opens without reading pixels, resolution and DICOM series."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from napari.components import ViewerModel
from PIL import Image

from napari_lrmil.core.errors import ResolutionError, SlideError
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.plugin.viewer.layers import lrmil_layers
from napari_lrmil.plugin.viewer.opening import reader
from napari_lrmil.plugin.viewer.opening.mpp_prompt import MppAnswer
from napari_lrmil.plugin.viewer.opening.reader import get_reader, one_path_per_slide, read_slide_layers
from support.fake_slides import one_sentence, speckled, write_tiff


def test_a_slide_opens_without_decoding_a_pixel_at_its_size_in_um(
    slide_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Slide] = []
    initialise = Slide.__init__
    monkeypatch.setattr(Slide, "__init__", lambda self, *a, **k: (opened.append(self), initialise(self, *a, **k))[1])
    opener = get_reader(str(slide_path))
    assert opener is not None
    [(data, options, kind)] = opener(str(slide_path))
    assert kind == "image" and options["rgb"] and options["multiscale"]
    assert options["scale"] == (0.5, 0.5) and options["units"] == ("um", "um")
    assert [level.shape for level in data] == [(1000, 1280, 3), (250, 320, 3)]
    assert [slide.pixels_decoded for slide in opened] == [0]


def test_several_slides_become_several_layers(slide_path: Path) -> None:
    paths = [str(slide_path), str(slide_path)]
    opener = get_reader(paths)
    assert opener is not None
    assert len(opener(paths)) == 2


def test_ordinary_pictures_are_left_to_other_readers(tmp_path: Path, slide_path: Path) -> None:
    pixels = speckled(300, 200)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    tifffile.imwrite(tmp_path / "strips.tif", pixels)
    tifffile.imwrite(tmp_path / "grey.tif", pixels[..., 0].astype(np.uint16), tile=(64, 64))
    (tmp_path / "not.svs").write_bytes(b"hello")
    (tmp_path / "folder").mkdir()
    for name in ("photo.png", "strips.tif", "grey.tif", "folder", "missing.svs"):
        assert get_reader(str(tmp_path / name)) is None, name
    assert get_reader([str(slide_path), str(tmp_path / "photo.png")]) is None
    assert get_reader(str(tmp_path / "not.svs")) is not None, "it says why it cannot be opened"


def test_a_slide_without_resolution_is_refused_in_one_sentence_where_nobody_can_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiff(tmp_path / "bare.tif", speckled(600, 400))
    monkeypatch.setattr("napari.current_viewer", lambda: None)
    opener = get_reader(path)
    assert opener is not None
    with pytest.raises(ResolutionError, match="microns per pixel") as refused:
        opener(path)
    assert one_sentence(refused.value)
    [(_, options, _)] = read_slide_layers(path, mpp=0.25)
    assert options["scale"] == (0.25, 0.25)


def test_a_slide_that_is_cut_short_is_refused_in_one_sentence(tmp_path: Path, slide_path: Path) -> None:
    path = tmp_path / "short.tif"
    path.write_bytes(slide_path.read_bytes()[: 1 << 12])
    with pytest.raises(SlideError) as refused:
        read_slide_layers(path)
    assert one_sentence(refused.value)


def test_real_slides_open(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "slides" / "derived" / "CMU-1-Small-Region_pyramid_aperio.svs"
    opener = get_reader(path)
    assert opener is not None
    [(data, options, _)] = opener(path)
    assert options["scale"] == pytest.approx((0.499, 0.499))
    assert np.asarray(data[-1]).std() > 5
    copy = tmp_path / "dicom"
    files = sorted(shared_data.glob("slides/**/*.dcm"))
    if files:
        shutil.copytree(files[0].parent, copy)
        assert get_reader(copy) is not None


# ---------------------------------------------------------------- resolution


def test_a_slide_without_resolution_is_asked_about_and_opened_with_the_answer(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "bare.tif", speckled(600, 400))
    memory, asked_names = SettingsStore(tmp_path), []

    def ask(slide: Slide) -> MppAnswer:
        asked_names.append(slide.name)
        return MppAnswer(0.25)

    for _ in range(2):
        [(_, options, _)] = read_slide_layers(path, ask=ask, memory=memory)
        assert options["scale"] == (0.25, 0.25)
    assert asked_names == ["bare"]


def test_a_slide_that_nobody_can_size_is_left_out_with_a_sentence_and_closed(
    tmp_path: Path, slide_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiff(tmp_path / "bare.tif", speckled(600, 400))
    notifications: list[str] = []
    monkeypatch.setattr(reader, "_notify", notifications.append)
    layers = read_slide_layers([path, slide_path], ask=lambda _: None, memory=SettingsStore(tmp_path))
    assert [options["name"] for _, options, _ in layers] == ["tissue"]
    [sentence] = notifications
    assert sentence.startswith("bare.tif was not opened") and "\n" not in sentence


def test_napari_takes_a_cancelled_dialog_for_no_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiff(tmp_path / "bare.tif", speckled(600, 400))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(reader, "_notify", lambda _: None)
    monkeypatch.setattr(reader, "ask_mpp_with_estimate", lambda _: None)
    monkeypatch.setattr("napari.current_viewer", ViewerModel)
    opener = get_reader(path)
    assert opener is not None and opener(path) == [(None,)]


# ---------------------------------------------------------------- DICOM


@pytest.fixture
def dicom(shared_data: Path) -> Path:
    return shared_data / "slides" / "CMU-1-Small-Region_dicom"


def test_files_of_one_dicom_series_are_one_slide(dicom: Path, slide_path: Path) -> None:
    files = sorted(dicom.glob("*.dcm"))
    assert len(files) == 4
    assert one_path_per_slide([files[2], slide_path, *files, dicom]) == [dicom, slide_path]
    [(data, options, _)] = read_slide_layers(files)
    assert options["name"] == dicom.name, "not the number of a file"
    finest = data[0] if options["multiscale"] else data
    assert finest.shape == (2967, 2220, 3)
    assert options["scale"] == pytest.approx((0.499, 0.499))


def test_a_folder_of_one_series_is_one_slide_by_its_name_and_of_two_series_two(
    dicom: Path, shared_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "study"
    shutil.copytree(dicom, folder)
    assert one_path_per_slide([folder]) == [folder]
    assert [options["name"] for _, options, _ in read_slide_layers(folder)] == ["study"]
    shutil.copy(shared_data / "slides" / "camelyon_overview_jpeg" / "overview.dcm", folder / "overview.dcm")
    (folder / "broken.dcm").write_bytes(b"DICM")
    paths = one_path_per_slide([folder])
    assert len(paths) == 2 and paths[1] == folder / "overview.dcm"
    assert one_path_per_slide([paths[0]]) == [paths[0]], "the folder holds another slide too"
    assert get_reader(folder) is not None


def test_dropped_one_by_one_as_napari_does_the_series_comes_once(
    dicom: Path, slide_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari.plugins import _initialize_plugins

    _initialize_plugins()
    viewer = ViewerModel()
    monkeypatch.setattr("napari.current_viewer", lambda: viewer)
    viewer.open([*sorted(dicom.glob("*.dcm")), slide_path], plugin="napari-lrmil")
    assert len(lrmil_layers(viewer, role="slide")) == 2
    viewer.layers.clear()
    viewer.open(sorted(dicom.glob("*.dcm"))[1], plugin="napari-lrmil")
    assert len(lrmil_layers(viewer, role="slide")) == 1, "a slide that was closed can be opened again"
