"""Attention as DICOM: other programs open it, it lies where the slide lies, and it names no patient unasked."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_lrmil.core.errors import StoredError
from napari_lrmil.core.results.attention_raster import AttentionRaster, rasterize_stored
from napari_lrmil.core.results.dicom_frame import SlideFrame, find_slide_frame, own_frame
from napari_lrmil.core.results.reader import StoredPrediction, read_prediction_folder
from napari_lrmil.core.visualize.colormaps import viridis_colors
from napari_lrmil.core.visualize.overlay import attention_limits

pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")
highdicom = pytest.importorskip("highdicom", reason="the extra `dicom` is not installed")
from napari_lrmil.core.results.dicom import MAP_FILE, PICTURE_FILE, write_dicom_maps  # noqa: E402

Call = Callable[..., tuple[int, str, str]]
STORED = Path(__file__).parents[2] / "formats" / "v0_1"
COMPARED = STORED / "predictions" / "test-13-002"  # student and teacher, on a TIFF
SECRETS = {
    "PatientName": "Doe^Jane",
    "PatientID": "MRN-4711",
    "PatientBirthDate": "19500102",
    "PatientSex": "F",
    "AccessionNumber": "ACC-99",
    "StudyDate": "20240304",
    "InstitutionName": "Mercy Hospital",
    "OtherPatientIDs": "OTHER-1",
    "ContainerIdentifier": "S24-0815",
}


@pytest.fixture(scope="module")
def stored() -> StoredPrediction:
    return read_prediction_folder(COMPARED)


def written(folder: Path, stored: StoredPrediction, frame: SlideFrame) -> tuple[Any, Any]:
    """Return the parametric map and its picture, as pydicom reads them."""
    paths = write_dicom_maps(folder, stored, frame)
    assert paths == (folder / MAP_FILE, folder / PICTURE_FILE)
    assert sorted(path.name for path in folder.iterdir()) == sorted([MAP_FILE, PICTURE_FILE])
    return tuple(pydicom.dcmread(path) for path in paths)


def channels_of(dataset: Any) -> dict[str, np.ndarray]:
    """Return label -> values of the frames of a parametric map."""
    frames = dataset.PerFrameFunctionalGroupsSequence
    labels = [frame.RealWorldValueMappingSequence[0].LUTLabel for frame in frames]
    return dict(zip(labels, dataset.pixel_array, strict=True))


def strings_of(dataset: Any) -> Iterator[str]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from strings_of(item)
        elif element.VR not in ("OB", "OW", "OF", "UN"):
            yield str(element.value)


# ---------------------------------------------------------------- any slide


def test_pydicom_and_highdicom_read_the_values(tmp_path: Path, stored: StoredPrediction) -> None:
    dataset, _ = written(tmp_path, stored, own_frame(stored, "a test"))
    raster = rasterize_stored(stored)
    channels = channels_of(dataset)
    assert list(channels) == ["attention", "teacher", "difference", "evidence 1", "evidence 2"]
    for channel in raster.channels:
        np.testing.assert_array_equal(channels[channel.label], channel.values)
        assert channel.values.dtype == np.float32 and np.isnan(channel.values).any() == (
            np.isfinite(channel.values).sum() < channel.values.size
        )
    opened = highdicom.pm.ParametricMap.from_file(tmp_path / MAP_FILE)
    for frame, channel in zip(opened.get_frames(), raster.channels, strict=True):  # real-world values
        np.testing.assert_array_equal(np.asarray(frame, np.float32), channel.values)
    assert dataset.ContentQualification == "RESEARCH" and "Research use only" in dataset.ContentDescription
    assert "Research use only" in dataset.SeriesDescription


def test_the_raster_has_each_patch_and_the_teacher_where_it_read(stored: StoredPrediction) -> None:
    """Counted patch by patch, with the teacher's patches of one LR patch left out as if it had not read them."""
    assert stored.teacher is not None
    student, teacher = stored.student, stored.teacher
    width, height = student.attributes["patch_level0_xy"]
    corner, size = student.coords[3], np.array([width, height])
    is_left = ~((teacher.coords >= corner) & (teacher.coords < corner + size)).all(axis=1)
    part = {"coords": teacher.coords[is_left], "attention": teacher.attention[is_left]}
    partly = replace(stored, teacher=replace(teacher, **part, evidence=teacher.evidence[is_left], patch_logits=None))
    raster = rasterize_stored(partly)
    values = {channel.label: channel.values for channel in raster.channels}
    cells = [(int((y - raster.origin_level0[1]) // height), int((x - raster.origin_level0[0]) // width))
             for x, y in student.coords]  # fmt: skip
    sums = np.array([
        partly.teacher.attention[((part["coords"] >= at) & (part["coords"] < at + size)).all(axis=1)].sum()
        for at in student.coords
    ])  # fmt: skip
    read = np.arange(len(cells)) != 3
    for row, cell in enumerate(cells):
        assert values["attention"][cell] == pytest.approx(student.attention[row] * len(cells), rel=1e-5)
        assert values["evidence 2"][cell] == student.evidence[row, 1]
        if row == 3:
            assert np.isnan(values["teacher"][cell]) and np.isnan(values["difference"][cell])
            continue
        of_student = student.attention[row] / student.attention[read].mean()
        assert values["teacher"][cell] == pytest.approx(sums[row] / sums[read].mean(), rel=1e-4)
        assert values["difference"][cell] == pytest.approx(of_student - sums[row] / sums[read].mean(), abs=1e-4)
    assert np.isfinite(values["attention"]).sum() == len(cells) == np.isfinite(values["teacher"]).sum() + 1


def test_another_slide_has_a_frame_of_its_own_that_names_no_source(tmp_path: Path, stored: StoredPrediction) -> None:
    frame = find_slide_frame(stored, [STORED / "slides"], keep_patient=True)
    assert frame.own_reason == "the slide is no DICOM file"
    dataset, picture = written(tmp_path / "a", stored, frame)
    raster = rasterize_stored(stored)
    (x, y), (width, height), mpp = raster.origin_level0, raster.pixel_level0, stored.summary.mpp
    for each in (dataset, picture):
        assert "ReferencedSeriesSequence" not in each and "SourceImageSequence" not in each
        assert (each.PatientID, each.PatientName, each.StudyDate) == ("", "", "")
        assert stored.summary.slide not in " ".join(strings_of(each)), "a name of a file may name a patient"
        start = each.TotalPixelMatrixOriginSequence[0]
        offsets = (float(start.XOffsetInSlideCoordinateSystem), float(start.YOffsetInSlideCoordinateSystem))
        assert offsets == pytest.approx(((x + width / 2) * mpp / 1000, (y + height / 2) * mpp / 1000))
        spacing = each.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
        assert list(map(float, spacing)) == pytest.approx([height * mpp / 1000, width * mpp / 1000])
    assert "Own frame of reference" in dataset.ContentDescription
    assert dataset.FrameOfReferenceUID == picture.FrameOfReferenceUID
    assert len({dataset.SeriesInstanceUID, picture.SeriesInstanceUID, dataset.SOPInstanceUID}) == 3
    again, _ = written(tmp_path / "b", stored, frame)
    assert again.SOPInstanceUID == dataset.SOPInstanceUID, "the same result is the same object"
    other = replace(stored, student=replace(stored.student, evidence=stored.student.evidence * 2))
    changed, _ = written(tmp_path / "c", other, frame)
    assert (
        changed.SOPInstanceUID != dataset.SOPInstanceUID and changed.FrameOfReferenceUID == dataset.FrameOfReferenceUID
    )


def require_picture(folder: Path, raster: AttentionRaster, mpp: float) -> None:
    """Compare the pixels that wsidicom reads with the overlay's colours."""
    wsidicom = pytest.importorskip("wsidicom")
    values = raster.channels[0].values
    low, high = attention_limits([values[np.isfinite(values)]], "raw")
    expected = viridis_colors(np.nan_to_num((values - low) / (high - low)))
    expected[~np.isfinite(values)] = 255
    with wsidicom.WsiDicom.open(folder / PICTURE_FILE) as slide:
        level = slide.levels[0]
        assert (level.size.height, level.size.width) == values.shape
        assert slide.mpp.width == pytest.approx(raster.pixel_level0[0] * mpp, rel=1e-4)
        pixels = np.asarray(slide.read_region((0, 0), 0, (level.size.width, level.size.height)))
    np.testing.assert_array_equal(pixels[..., :3], expected)
    with pytest.raises(wsidicom.errors.WsiDicomNotFoundError):  # it reads whole-slide images only, hence the picture
        wsidicom.WsiDicom.open(folder / MAP_FILE)


def test_wsidicom_reads_the_picture_as_pixels(tmp_path: Path, stored: StoredPrediction) -> None:
    write_dicom_maps(tmp_path, stored, own_frame(stored, "a test"))
    require_picture(tmp_path, rasterize_stored(stored), stored.summary.mpp)


# ---------------------------------------------------------------- a DICOM slide


@pytest.fixture(scope="module")
def dicom_slide(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of a real DICOM slide whose header names a patient."""
    folder = tmp_path_factory.mktemp("slides") / "CMU-1-Small-Region_dicom"
    shutil.copytree(shared_data / "slides" / "CMU-1-Small-Region_dicom", folder)
    for path in folder.iterdir():
        path.chmod(0o644)
        dataset = pydicom.dcmread(path)
        for name, value in SECRETS.items():
            setattr(dataset, name, value)
        dataset.SpecimenDescriptionSequence[0].SpecimenIdentifier = "S24-0815-A1"
        dataset.save_as(path)
    return folder


@pytest.fixture(scope="module")
def of_dicom(dicom_slide: Path, build_once: Callable[..., Path]) -> StoredPrediction:
    import torch

    from napari_lrmil.core.inference.predict import predict
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.results.writer import write_prediction
    from napari_lrmil.core.slides.slide import Slide

    def fill(folder: Path) -> None:
        with Slide(dicom_slide) as slide:
            *_, last = predict(slide, Bundle("demo"), device=torch.device("cpu"))
            write_prediction(folder, slide, last.result, overlay=False)  # type: ignore[union-attr]

    return read_prediction_folder(build_once("results of a DICOM slide", fill) / dicom_slide.name)


def test_the_map_lies_on_the_slides_frame_of_reference(
    tmp_path: Path, dicom_slide: Path, of_dicom: StoredPrediction
) -> None:
    """The centre of each pixel of map and picture is the centre of its patch on the source's level 0."""
    source = next(
        dataset
        for path in dicom_slide.iterdir()
        if (dataset := pydicom.dcmread(path, stop_before_pixels=True)).ImageType[2] == "VOLUME"
    )
    frame = find_slide_frame(of_dicom, [dicom_slide.parent], keep_patient=False)
    assert frame.own_reason == ""
    dataset, picture = written(tmp_path, of_dicom, frame)
    raster = rasterize_stored(of_dicom)
    to_source = highdicom.spatial.ReferenceToPixelTransformer.for_image(source, for_total_pixel_matrix=True)
    rows, columns = raster.channels[0].values.shape
    pixels = np.array([[column, row] for row in range(rows) for column in range(columns)])
    centres = np.array(raster.origin_level0) + (pixels + 0.5) * raster.pixel_level0 - 0.5
    for each in (dataset, picture):
        assert each.FrameOfReferenceUID == source.FrameOfReferenceUID
        assert each.StudyInstanceUID == source.StudyInstanceUID and each.SeriesInstanceUID != source.SeriesInstanceUID
        assert each.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
        assert each.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
        start = each.TotalPixelMatrixOriginSequence[0]
        position = [float(start.XOffsetInSlideCoordinateSystem), float(start.YOffsetInSlideCoordinateSystem), 0.0]
        to_slide = highdicom.spatial.PixelToReferenceTransformer(
            image_position=position,
            image_orientation=list(each.ImageOrientationSlide),
            pixel_spacing=list(each.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing),
        )
        np.testing.assert_allclose(to_source(to_slide(pixels))[:, :2], centres, atol=1)  # it rounds to whole pixels
    require_picture(tmp_path, raster, of_dicom.summary.mpp)


def test_a_patient_is_named_only_on_request(tmp_path: Path, dicom_slide: Path, of_dicom: StoredPrediction) -> None:
    secrets = {*SECRETS.values(), "S24-0815-A1"}
    for keep in (False, True):
        frame = find_slide_frame(of_dicom, [dicom_slide.parent], keep_patient=keep)
        for dataset in written(tmp_path / str(keep), of_dicom, frame):
            texts = set(strings_of(dataset))
            if not keep:
                assert not texts & secrets and not any(secret in text for secret in secrets - {"F"} for text in texts)
                assert dataset.PatientID == "" and dataset.PatientName == ""
            else:
                assert {"Doe^Jane", "MRN-4711", "19500102", "ACC-99", "20240304", "S24-0815"} <= texts


def test_a_header_without_tags_that_it_should_have(
    tmp_path: Path, dicom_slide: Path, of_dicom: StoredPrediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lacking tags of the patient are empty; a slide without a position or a pixel size gets a frame of its own."""
    read = pydicom.dcmread

    def reader_without(*names: str) -> Callable[..., Any]:
        def read_part(path: Path, **options: Any) -> Any:
            dataset = read(path, **options)
            for name in names:
                if name in dataset:
                    delattr(dataset, name)
            return dataset

        return read_part

    monkeypatch.setattr(pydicom, "dcmread", reader_without("StudyID", "PatientSex", "StudyTime"))
    frame = find_slide_frame(of_dicom, [dicom_slide.parent], keep_patient=True)
    monkeypatch.setattr(pydicom, "dcmread", read)
    dataset, _ = written(tmp_path, of_dicom, frame)
    assert frame.own_reason == "" and dataset.PatientSex == "" and dataset.PatientID == "MRN-4711"
    for name, reason in (
        ("FrameOfReferenceUID", "has no FrameOfReferenceUID"),
        ("SharedFunctionalGroupsSequence", "has no PixelSpacing"),
    ):
        monkeypatch.setattr(pydicom, "dcmread", reader_without(name))
        frame = find_slide_frame(of_dicom, [dicom_slide.parent], keep_patient=True)
        assert reason in frame.own_reason and frame.headers[0].PatientID == ""


def test_a_header_that_cannot_be_kept_is_refused(tmp_path: Path, dicom_slide: Path, of_dicom: StoredPrediction) -> None:
    frame = find_slide_frame(of_dicom, [dicom_slide.parent], keep_patient=True)
    frame.headers[0].PatientSex = "X"
    with pytest.raises(StoredError, match="leave --keep-patient out"):
        write_dicom_maps(tmp_path / "out", of_dicom, frame)
    assert not (tmp_path / "out").exists()


def test_another_slide_at_the_place_is_refused(
    tmp_path: Path, shared_data: Path, dicom_slide: Path, of_dicom: StoredPrediction
) -> None:
    shutil.copytree(shared_data / "slides" / "camelyon_overview_jpeg", tmp_path / dicom_slide.name)
    with pytest.raises(StoredError, match="is another slide than the one of these results"):
        find_slide_frame(of_dicom, [tmp_path], keep_patient=False)


# ---------------------------------------------------------------- command line


def test_the_command_says_which_frame(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text, err = call("export", COMPARED, "--format", "dicom", "--slides", STORED / "slides", "--out", out)
    assert (code, err) == (0, "") and "own frame of reference: the slide is no DICOM file" in text
    assert (out / "test-13-002" / MAP_FILE).is_file()
    code, text, _ = call("export", COMPARED, "--format", "dicom", "--out", out)
    assert code == 0 and "own frame of reference" in text


def test_wrong_options_are_refused(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = ("--out", tmp_path / "out")
    code, _, err = call("export", COMPARED, "--format", "qupath", "--keep-patient", *out)
    assert code == 2 and "belong to --format dicom" in err
    code, _, err = call("export", COMPARED, "--format", "dicom", "--slides", tmp_path / "no", *out)
    assert code == 2 and "no such folder" in err
    monkeypatch.setitem(__import__("napari_lrmil.core.extras", fromlist=["EXTRAS"]).EXTRAS, "dicom", ("no_highdicom",))
    code, _, err = call("export", COMPARED, "--format", "dicom", *out)
    assert code == 2 and "napari-lrmil[dicom]" in err and not (tmp_path / "out").exists()
