"""Result files of a slide: complete or absent, and attention at the right place (alignment self-test)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from napari_lrmil.core.errors import StoredError
from napari_lrmil.core.events import Finished
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.results.schema import PredictionFile
from napari_lrmil.core.results.writer import require_result_folder, write_prediction, write_steps
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.visualize.slide_report import ReportRequest
from support.fake_slides import (
    TISSUE,
    DarknessBundle,
    FakeSlide,
    fake_slide,
    glass,
    one_sentence,
    resolution,
    speckled,
    write_tiff,
)

# Users' scripts rely on them
KEYS = {
    "schema_version",
    "slide", "path", "slide_fingerprint", "bundle", "bundle_sha256", "classes", "probabilities", "calibrated", "logits",
    "predicted", "mpp", "lr_mpp", "patch_um", "n_patches", "n_hr_patches", "pixels_decoded", "device",
    "reader", "reader_reason", "finest_mpp_read", "finest_mpp_reason",
    "runtime", "precision", "runtime_reason", "scope", "seconds", "warnings",
    "version",
}  # fmt: skip
AGREEMENT = {
    "schema_version",
    "spearman", "jaccard_top10", "js_divergence", "n_patches", "probability_student", "probability_teacher",
    "seconds_student", "seconds_teacher", "pixels_student", "pixels_teacher",
}  # fmt: skip

ALONE = ["attention.geojson", "attention.h5", "attention.ome.tif", "overlay.png", "prediction.json"]


def predicted(slide: Slide, teacher: str = "none", **card: Any) -> Prediction:
    *_, last = predict(slide, DarknessBundle(**card), device=torch.device("cpu"), teacher=TeacherPatches.parse(teacher))  # type: ignore[arg-type]
    assert isinstance(last, Finished)
    return last.result  # type: ignore[no-any-return]  # Finished carries anything


def uneven(folder: Path, mpp: tuple[float, float] = (0.5, 0.4)) -> Slide:
    return fake_slide(folder, FakeSlide(speckled(1300, 800), (1.0, 4.0), resolution(*mpp)), name="s 1.svs")


# ---------------------------------------------------------------- alignment self-test

Planted = tuple[Slide, list[tuple[float, float]]]  # a slide, and the squares' centres in level-0 pixels

SQUARE_UM = 36.0  # a planted square; an LR patch is 128 µm
PLANTED = ((4.3, 1.6), (1.4, 2.35))  # where, in LR patches from the lattice's origin: never across a patch's border


def plant(base: np.ndarray, origin: tuple[int, int], mpp: tuple[float, float]) -> list[tuple[float, float]]:
    """Fill `base` with tissue and two dark squares; return their centres in level-0 pixels."""
    base[origin[1] :, origin[0] :] = TISSUE
    centres = []
    for across, down in PLANTED:
        x, y = origin[0] + across * 128 / mpp[0], origin[1] + down * 128 / mpp[1]
        half = SQUARE_UM / 2 / mpp[0], SQUARE_UM / 2 / mpp[1]
        base[round(y - half[1]) : round(y + half[1]), round(x - half[0]) : round(x + half[0])] = (70, 30, 90)
        centres.append((x, y))
    return centres


def tiff(folder: Path, mpp: tuple[float, float], downsamples: tuple[float, ...]) -> Planted:
    base = glass(round(6 * 128 / mpp[0]), round(4 * 128 / mpp[1]))
    centres = plant(base, (0, 0), mpp)
    return Slide(write_tiff(folder / "planted.tif", base, downsamples, mpp)), centres


def with_bounds(folder: Path) -> Planted:
    base = glass(1999, 1411)
    centres = plant(base, (333, 217), (0.5, 0.5))
    scanned = {"bounds-x": "333", "bounds-y": "217", "bounds-width": "1600", "bounds-height": "1100"}
    properties = resolution(0.5) | {f"openslide.{k}": v for k, v in scanned.items()}
    return fake_slide(folder, FakeSlide(base, (1.0, 4.002), properties)), centres


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda f: tiff(f, (0.5, 0.5), (1.0, 4.0, 16.0)), id="20x"),
        pytest.param(lambda f: tiff(f, (0.25, 0.25), (1.0, 4.0)), id="40x"),
        pytest.param(lambda f: tiff(f, (0.2649, 0.2649), (1.0, 4.0, 16.0)), id="0.2649"),
        pytest.param(lambda f: tiff(f, (0.5, 0.4), (1.0, 2.0)), id="oblong pixels"),
        pytest.param(lambda f: tiff(f, (0.5, 0.5), (1.0,)), id="one level"),
        pytest.param(with_bounds, id="bounds offset"),
    ],
)
def test_planted_squares_are_found_within_half_an_lr_patch_in_the_file(
    tmp_path: Path, make: Callable[[Path], Planted]
) -> None:
    slide, centres = make(tmp_path)
    with slide:
        folder = write_prediction(tmp_path / "out", slide, predicted(slide, teacher="all"))
    for file, per_patch in (("attention.h5", 1), ("teacher_attention.h5", 4)):  # cells along a side of an LR patch
        with h5py.File(folder / file) as written:
            coords, attention = np.asarray(written["coords"]), np.asarray(written["attention"])
            size = np.asarray(written["coords"].attrs["patch_level0_xy"])
            side = written["coords"].attrs["patch_size_level0"]
        assert side == size[0]
        middles = coords + size / 2
        peaks = []
        for centre in centres:
            near = np.abs(middles - centre) <= size * per_patch / 2
            peaks.append(attention[near.all(axis=1)].max())
        assert min(peaks) > 2 / len(attention), f"{file}: a square was not seen"
        off = np.abs(middles[:, None] - np.array(centres)[None]) > size * per_patch / 2
        elsewhere = off.any(axis=2).all(axis=1)
        assert attention[elsewhere].max() < 0.5 * min(peaks), f"{file}: looks elsewhere"


def test_the_self_test_would_see_a_map_moved_by_one_patch(tmp_path: Path) -> None:
    slide, centres = tiff(tmp_path, (0.5, 0.5), (1.0, 4.0))
    with slide:
        student = predicted(slide).student
    middles = student.coords + np.array(student.patch_level0) / 2
    for move in ((256, 0), (0, 256), (-256, 0), (0, -256)):
        best = middles[student.attention.argmax()] + move
        assert not (np.abs(best - centres) <= 128).all(axis=1).any()


# ---------------------------------------------------------------- files


def test_without_a_teacher_the_files_are_these_and_complete(tmp_path: Path) -> None:
    with uneven(tmp_path) as slide:
        prediction = predicted(slide)
        folder = write_prediction(tmp_path / "out", slide, prediction)
    assert folder == tmp_path / "out" / "s 1"
    assert sorted(p.name for p in folder.iterdir()) == ALONE
    content = json.loads((folder / "prediction.json").read_text(encoding="utf-8"))
    assert set(content) == KEYS
    assert set(content["seconds"]) == {"open", "tissue", "prepare", "read", "encode", "mil", "total"}
    assert content["slide"] == "s 1" and content["classes"] == ["normal", "lesion"] and content["device"] == "cpu"
    assert content["probabilities"] == prediction.student.probabilities and content["calibrated"] is False
    assert content["predicted"] == max(content["probabilities"], key=content["probabilities"].get)
    assert content["lr_mpp"] == 2.0 and content["patch_um"] == pytest.approx(128)
    assert content["n_patches"] == len(prediction.student.coords) and content["n_hr_patches"] == len(
        prediction.grid.hr_index
    )
    assert content["warnings"] == []
    assert (content["reader"], content["reader_reason"]) == ("openslide", "the slide does not come from a file")


def test_with_a_teacher_its_attention_and_the_agreement_lie_beside(tmp_path: Path) -> None:
    with uneven(tmp_path) as slide:
        prediction = predicted(slide, teacher="all")
        folder = write_prediction(tmp_path / "out", slide, prediction)
    assert sorted(p.name for p in folder.iterdir()) == sorted([*ALONE, "agreement.json", "teacher_attention.h5"])
    content = json.loads((folder / "prediction.json").read_text(encoding="utf-8"))
    assert set(content) == KEYS | {"teacher"}
    agreement = json.loads((folder / "agreement.json").read_text(encoding="utf-8"))
    assert set(agreement) == AGREEMENT
    assert prediction.teacher is not None and agreement["probability_teacher"] == prediction.teacher.probabilities
    with h5py.File(folder / "teacher_attention.h5") as file:
        assert np.array_equal(file["coords"], prediction.grid.hr_corners)
        assert np.sum(file["attention"], dtype=np.float64) == pytest.approx(1, abs=1e-4)
        assert file["coords"].attrs["target_mpp"] == 0.5 and file["coords"].attrs["patch_size"] == 64


def test_teacher_and_student_are_charged_for_the_same_steps(tmp_path: Path) -> None:
    """Both need the slide opened and its tissue found; leaving that out for one would flatter it."""
    with uneven(tmp_path) as slide:
        prediction = predicted(slide, teacher="all")
    assert prediction.teacher is not None
    assert set(prediction.teacher.seconds) == set(prediction.student.seconds)


def test_attention_files_have_tridents_attributes_and_ours(tmp_path: Path) -> None:
    with uneven(tmp_path) as slide:
        prediction = predicted(slide)
        folder = write_prediction(tmp_path / "out", slide, prediction)
    with h5py.File(folder / "attention.h5") as file:
        coords, attention, evidence = file["coords"], file["attention"], file["evidence"]
        assert coords.dtype == np.int64 and coords.shape == (len(attention), 2)
        assert attention.dtype == np.float32 and np.sum(attention, dtype=np.float64) == pytest.approx(1, abs=1e-4)
        assert evidence.dtype == np.float32 and evidence.shape == (len(attention), 2)
        assert list(evidence.attrs["classes"]) == ["normal", "lesion"]
        a = dict(coords.attrs)
        assert (a["patch_size"], a["patch_size_level0"], a["overlap"]) == (64, 256, 0)
        assert tuple(a["patch_level0_xy"]) == (256, 320)
        assert (a["level0_width"], a["level0_height"]) == (1300, 800)
        assert a["name"] == "s 1" and a["savetodir"] == "None" and a["target_magnification"] == 5
        assert a["mpp0"] == pytest.approx(np.sqrt(0.5 * 0.4)) and a["target_mpp"] == 2.0
        assert a["patch_um"] == pytest.approx(128)
        assert a["slide_fingerprint"] == "f" * 32 and a["bundle_sha256"] == "d" * 64
        np.testing.assert_array_equal(attention, prediction.student.attention)
        np.testing.assert_array_equal(evidence, prediction.student.evidence)


@pytest.mark.parametrize(("mpp", "power"), [(0.5, 20), (0.25, 40), (0.2649, 40), (0.2282, 40), (0.46, 20)])
def test_level0_magnification_is_the_nominal_one(tmp_path: Path, mpp: float, power: int) -> None:
    """TRIDENT stores the objective's nominal magnification; its readers divide by it."""
    with uneven(tmp_path, (mpp, mpp)) as slide:
        folder = write_prediction(tmp_path / "out", slide, predicted(slide))
    with h5py.File(folder / "attention.h5") as file:
        assert file["coords"].attrs["level0_magnification"] == power


def test_two_footprints_of_one_slide_do_not_disagree(tmp_path: Path) -> None:
    """The rounding of cells differs along x and y where the pixels are oblong; JSON and HDF5 state one footprint."""
    with uneven(tmp_path, (0.49, 0.37)) as slide:
        folder = write_prediction(tmp_path / "out", slide, predicted(slide))
    content = json.loads((folder / "prediction.json").read_text(encoding="utf-8"))
    with h5py.File(folder / "attention.h5") as file:
        assert file["coords"].attrs["patch_um"] == pytest.approx(content["patch_um"])


@pytest.mark.parametrize(
    "step",
    [
        "results.writer.write_attention",
        "results.writer.write_attention_ome",
        "results.writer.write_attention_geojson",
        "results.writer.draw_overlay",
        "results.schema.write_json",
    ],
)
def test_a_failure_midway_leaves_what_was_there_and_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    with uneven(tmp_path) as slide:
        folder = write_prediction(tmp_path / "out", slide, predicted(slide, teacher="all"))
        before = {file.name: file.read_bytes() for file in folder.iterdir()}
        monkeypatch.setattr(f"napari_lrmil.core.{step}", fail)
        with pytest.raises(OSError, match="disk full"):
            write_prediction(tmp_path / "out", slide, predicted(slide))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [file.name for file in (tmp_path / "out").iterdir()] == [folder.name]


def test_the_picture_is_left_out_on_request_and_an_older_one_goes(tmp_path: Path) -> None:
    with uneven(tmp_path) as slide:
        prediction = predicted(slide)
        folder = write_prediction(tmp_path / "out", slide, prediction)
        assert sorted(file.name for file in folder.iterdir()) == ALONE
        write_prediction(tmp_path / "out", slide, prediction, overlay=False)
    assert sorted(file.name for file in folder.iterdir()) == [name for name in ALONE if name != "overlay.png"]


def test_writing_that_is_broken_off_changes_nothing(tmp_path: Path) -> None:
    with uneven(tmp_path) as slide:
        steps = write_steps(tmp_path / "out", slide, predicted(slide))
        progress = [next(steps) for _ in range(3)]
        steps.close()
    assert [(step.done, step.unit) for step in progress] == [(0, "files"), (1, "files"), (2, "files")]
    assert not [*tmp_path.joinpath("out").rglob("*.*")]


def test_prediction_json_goes_first_and_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resume skips a slide that has one, so files written after it would be missing for good."""
    import os

    real, folder, moved = os.replace, tmp_path / "out" / "uneven", []

    def look(source: Path, target: Path) -> None:
        real(source, target)
        if Path(target).parent == folder:
            moved.append((Path(target).name, (folder / "prediction.json").exists()))

    with uneven(tmp_path) as slide:
        prediction = predicted(slide)
        folder = write_prediction(tmp_path / "out", slide, prediction)
        monkeypatch.setattr("napari_lrmil.core.atomic_files.os.replace", look)
        write_prediction(tmp_path / "out", slide, prediction)
    assert [name for name, _ in moved] == ALONE
    assert [existed for _, existed in moved] == [False] * (len(ALONE) - 1) + [True]


def test_the_exports_of_a_slide_with_bounds_are_in_qupaths_frame(tmp_path: Path) -> None:
    slide, _ = with_bounds(tmp_path)
    with slide:
        prediction = predicted(slide)
        folder = write_prediction(tmp_path / "out", slide, prediction)
    tiles = json.loads((folder / "attention.geojson").read_text(encoding="utf-8"))["features"]
    first = tiles[0]["geometry"]["coordinates"][0][0]
    assert first == [prediction.student.coords[0, 0] - 333, prediction.student.coords[0, 1] - 217]


def test_a_run_without_teacher_leaves_no_teacher_of_an_earlier_run(tmp_path: Path) -> None:
    with uneven(tmp_path) as slide:
        write_prediction(tmp_path / "out", slide, predicted(slide, teacher="all"))
        folder = write_prediction(tmp_path / "out", slide, predicted(slide))
    assert sorted(p.name for p in folder.iterdir()) == ALONE


def test_a_report_is_written_where_asked_and_goes_with_the_next_run(tmp_path: Path) -> None:
    with uneven(tmp_path) as slide:
        prediction = predicted(slide)
        folder = write_prediction(
            tmp_path / "out", slide, prediction, report=ReportRequest("napari-lrmil predict x", 0.5, 2)
        )
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert "napari-lrmil predict x" in page and page.count("data:image/png") == 4
        write_prediction(tmp_path / "out", slide, prediction)
    assert not (folder / "report.html").exists(), "it would tell of another run"


@pytest.mark.parametrize("file", ["prediction.json", "agreement.json"])
def test_results_of_a_newer_version_are_not_replaced_unless_that_is_asked_for(tmp_path: Path, file: str) -> None:
    newer = '{"schema_version": 2}'
    with uneven(tmp_path) as slide:
        prediction = predicted(slide)
        folder = write_prediction(tmp_path / "out", slide, prediction)
        (folder / file).write_text(newer)
        with pytest.raises(StoredError, match=rf"{file}.*schema version 2.*up to 1") as refused:
            write_prediction(tmp_path / "out", slide, prediction)
        assert one_sentence(refused.value) and (folder / file).read_text() == newer
        for _ in write_steps(tmp_path / "out", slide, prediction, replace_newer=True):
            pass
    assert PredictionFile.read(folder).slide == "s 1" and not (folder / "agreement.json").exists()


def test_results_do_not_lie_among_the_files_of_a_slide(tmp_path: Path) -> None:
    """The tiles of x.mrxs lie in the folder x, and a DICOM slide is a folder."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x.mrxs").touch()
    for slide in (tmp_path / "x.mrxs", tmp_path / "x"):
        with pytest.raises(StoredError, match="among the files of the slide"):
            require_result_folder(tmp_path / "x", slide)
    (tmp_path / "y").touch()
    with pytest.raises(StoredError, match="no folder that can be written to"):
        require_result_folder(tmp_path / "y", tmp_path / "y.svs")
    require_result_folder(tmp_path / "z", tmp_path / "z.svs")
