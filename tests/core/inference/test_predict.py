"""Prediction of a slide: pixels read, weights loaded, sums, cancelling, comparison with the teacher, real slides."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import copy
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch

from napari_lrmil.core.errors import BundleError, ResolutionError, TissueError
from napari_lrmil.core.events import Event, Finished, Notice, Progress, StageDone
from napari_lrmil.core.features.embedding_cache import CacheKey, EmbeddingCache
from napari_lrmil.core.inference.encoding import center_first_order
from napari_lrmil.core.inference.predict import predict, softmax_probabilities
from napari_lrmil.core.inference.prediction import NetworkPrediction, Prediction
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.metrics.agreement import measure_agreement, pool_to_lr_grid
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.card import TEACHER
from napari_lrmil.core.models.mil import pool_bag
from napari_lrmil.core.patching.color import CohortColour
from napari_lrmil.core.patching.regions import Region
from napari_lrmil.core.patching.roi import RegionOfInterest
from napari_lrmil.core.results.writer import build_prediction_file
from napari_lrmil.core.slides.slide import Slide
from support.fake_slides import (
    DarknessBundle,
    FakeSlide,
    fake_slide,
    glass,
    lively_bundle,
    one_sentence,
    resolution,
    speckled,
)
from support.jpeg_slides import Kind, tissue, write_jpeg_slide
from support.networks import CLASSES

CPU = torch.device("cpu")
PYRAMID = (1.0, 2.0, 4.002, 16.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return lively_bundle(tmp_path_factory.mktemp("bundle") / "b")


@lru_cache
def levels(width: int, height: int, mpp: tuple[float, float]) -> FakeSlide:
    base = speckled(width, height)
    base[: height // 2, width // 2 :] = 244
    return FakeSlide(base, PYRAMID, resolution(*mpp))


def pyramid(width: int = 1300, height: int = 800, mpp: tuple[float, float] = (0.5, 0.4)) -> FakeSlide:
    """Return an L of uneven tissue: the right upper quarter is glass."""
    return copy(levels(width, height, mpp))


def result(events: Iterator[Event]) -> Prediction:
    *_, last = events
    assert isinstance(last, Finished) and isinstance(last.result, Prediction)
    return last.result


def run(slide: Slide, model: Bundle | DarknessBundle, teacher: str = "none") -> Prediction:
    return result(predict(slide, model, device=CPU, teacher=TeacherPatches.parse(teacher)))  # type: ignore[arg-type]  # a stand-in


def check_sums(network: NetworkPrediction, classifier_bias: torch.Tensor) -> None:
    """Attention sums to 1; evidence and centred bias give the centred logit, both to 1e-4."""
    assert network.attention.sum(dtype=np.float64) == pytest.approx(1, abs=1e-4)
    assert (network.attention >= 0).all() and len(network.attention) == len(network.coords)
    logits, bias = np.array(list(network.logits.values())), classifier_bias.numpy().astype(float)
    total = network.evidence.sum(axis=0, dtype=np.float64) + bias - bias.mean()
    np.testing.assert_allclose(total, logits - logits.mean(), atol=1e-4)
    assert sum(network.probabilities.values()) == pytest.approx(1)


def test_the_sums_hold_and_everything_is_named(tmp_path: Path, bundle: Bundle) -> None:
    fake = pyramid()
    with fake_slide(tmp_path, fake) as slide:
        prediction = run(slide, bundle)
        decoded = slide.pixels_decoded
    check_sums(prediction.student, bundle.student.mil.classifier.bias)
    assert prediction.teacher is None and prediction.agreement is None
    assert prediction.slide == "fake" and prediction.bundle == "lively"
    assert prediction.bundle_sha256 == bundle.sha256
    assert (
        prediction.slide_fingerprint == "f" * 32
        and prediction.classes == CLASSES
        and prediction.level0_size == (1300, 800)
    )
    assert prediction.student.predicted == max(CLASSES, key=lambda c: prediction.student.probabilities[c])
    assert prediction.student.patch_level0 == (256, 320) and prediction.student.target_mpp == 2.0
    assert prediction.student.evidence.shape == (len(prediction.student.coords), 2)
    assert np.ptp(prediction.student.attention) > 1e-6, "a network that looks everywhere alike would hide a mix-up"
    assert prediction.student.pixels_decoded == decoded > 0
    assert set(prediction.student.seconds) == {"open", "tissue", "prepare", "read", "encode", "mil", "total"}


def test_hr_patches_that_a_teacher_would_read_are_counted(tmp_path: Path, bundle: Bundle) -> None:
    with fake_slide(tmp_path, pyramid()) as slide:
        prediction = run(slide, bundle)
    json = build_prediction_file(prediction).as_json()
    assert json["n_patches"] == len(prediction.student.coords) == len(prediction.grid.lr_index)
    assert json["n_hr_patches"] == len(prediction.grid.hr_index)
    assert json["n_patches"] < json["n_hr_patches"] <= 16 * json["n_patches"]
    corners = {tuple(c) for c in prediction.student.coords.tolist()}
    assert (0, 0) in corners and (1024, 0) not in corners and (1024, 640) in corners, (
        "patches lie where the tissue lies"
    )


def test_without_a_teacher_no_finer_pixel_is_read_and_no_teachers_weight_loaded(tmp_path: Path) -> None:
    """Every read is recorded: none at a level finer than LR, and the teacher's file may be gone."""
    bundle = lively_bundle(tmp_path / "b")
    (bundle.path / TEACHER).unlink()
    fake = pyramid()
    with fake_slide(tmp_path, fake) as slide:
        prediction = run(slide, Bundle(bundle.path))
        mpp = [slide.mpp.mean * fake.downsamples[level] for _, level, _ in fake.reads]
    assert prediction.teacher is None and len(mpp) >= len(prediction.student.coords)
    assert min(mpp) >= 2.0 / 1.12, "levels of 0.45 and 0.89 µm are there; only 1.79 µm and coarser may be touched"
    assert "teacher" not in vars(Bundle(bundle.path))


def test_the_teacher_beside_the_student_changes_nothing_for_the_student(tmp_path: Path, bundle: Bundle) -> None:
    fake = pyramid()
    with fake_slide(tmp_path, fake) as slide:
        alone = run(slide, bundle)
        assert {level for _, level, _ in fake.reads} <= {2, 3}
        both = run(slide, bundle, teacher="all")
    assert 0 in {level for _, level, _ in fake.reads}, "the teacher reads level 0"
    np.testing.assert_array_equal(alone.student.attention, both.student.attention)
    assert alone.student.logits == both.student.logits
    assert alone.student.pixels_decoded == both.student.pixels_decoded


def test_the_teacher_runs_on_the_hr_grid_and_is_compared_on_the_lr_grid(tmp_path: Path, bundle: Bundle) -> None:
    with fake_slide(tmp_path, pyramid()) as slide:
        prediction = run(slide, bundle, teacher="all")
    teacher = prediction.teacher
    assert teacher is not None and prediction.agreement is not None
    check_sums(teacher, bundle.teacher.mil.classifier.bias)
    np.testing.assert_array_equal(teacher.coords, prediction.grid.hr_corners)
    assert teacher.patch_level0 == (64, 80) and teacher.target_mpp == 0.5
    assert prediction.agreement == measure_agreement(prediction.grid, prediction.student.attention, teacher.attention)
    assert prediction.agreement.n_patches == len(prediction.student.coords)
    assert teacher.pixels_decoded >= 0.8 * len(teacher.coords) * 64 * 80
    assert set(build_prediction_file(prediction).as_json()["teacher"]) >= {"probabilities", "logits"}


def test_few_patches_are_a_notice_and_a_warning_of_region_and_agreement(tmp_path: Path) -> None:
    box = shapely.box(0, 0, 256, 320)
    region = RegionOfInterest("region", (Region("box", box),))
    with fake_slide(tmp_path, pyramid()) as slide:
        events = list(predict(slide, DarknessBundle(), device=CPU, teacher=TeacherPatches.ALL, scope=region))  # type: ignore[arg-type]  # a stand-in
    notices = [event.message for event in events if isinstance(event, Notice)]
    warnings = events[-1].result.warnings  # type: ignore[union-attr]  # Finished
    small, agreement = warnings
    assert small.startswith("small region: 1 LR patch, which gets all attention")
    assert agreement.startswith("the agreement of student and teacher is measured on 1 LR patch, fewer than 20")
    assert notices == [small, agreement]


def test_two_networks_that_look_for_the_same_agree_on_the_darkest_patch(tmp_path: Path) -> None:
    """Teacher attention carried to the LR grid lands on the patch where the student finds the same dark square."""
    base = speckled(1300, 800)
    base[400 + 30 : 400 + 110, 300:390] = (70, 30, 90)
    with fake_slide(tmp_path, FakeSlide(base, PYRAMID, resolution(0.5, 0.4))) as slide:
        prediction = run(slide, DarknessBundle(), teacher="all")
    assert prediction.student.coords[prediction.student.attention.argmax()].tolist() == [256, 320]
    assert prediction.teacher is not None and prediction.agreement is not None
    carried = pool_to_lr_grid(prediction.grid, prediction.teacher.attention)
    assert carried.argmax() == prediction.student.attention.argmax() and carried.sum() == pytest.approx(1, abs=1e-4)
    left, top = prediction.teacher.coords[prediction.teacher.attention.argmax()].tolist()
    assert 256 <= left < 390 and 400 <= top < 510


def test_calibration_divides_the_logits_and_is_told(tmp_path: Path) -> None:
    with fake_slide(tmp_path, pyramid()) as slide:
        raw = run(slide, DarknessBundle())
        calibrated = run(slide, DarknessBundle(temperature=2.5, teacher_temperature=0.5), teacher="all")
    assert not raw.calibrated and calibrated.calibrated
    assert raw.student.logits == calibrated.student.logits, "logits stay raw"
    difference = raw.student.logits["lesion"] - raw.student.logits["normal"]
    assert raw.student.probabilities["lesion"] == pytest.approx(1 / (1 + np.exp(-difference)))
    assert calibrated.student.probabilities["lesion"] == pytest.approx(1 / (1 + np.exp(-difference / 2.5)))
    assert calibrated.teacher is not None
    logits = calibrated.teacher.logits
    assert calibrated.teacher.probabilities == pytest.approx(softmax_probabilities(logits, 0.5)), (
        "by its own temperature"
    )


def test_probabilities_do_not_overflow() -> None:
    assert softmax_probabilities({"a": 1000.0, "b": 0.0}, None) == pytest.approx({"a": 1.0, "b": 0.0})


def test_pooling_keeps_no_gradients(bundle: Bundle) -> None:
    dim = bundle.student.mil.dim
    pooled = pool_bag(bundle.student.mil.requires_grad_(True), np.ones((3, dim), np.float32), CPU)
    bundle.student.mil.requires_grad_(False)
    assert pooled.attention.tolist() == pytest.approx([1 / 3] * 3) and pooled.evidence.shape == (3, 2)


# ---------------------------------------------------------------- the stream


def test_events_come_in_order_and_count_up(tmp_path: Path) -> None:
    with fake_slide(tmp_path, pyramid(2100, 1700)) as slide:
        events = list(predict(slide, DarknessBundle(), device=CPU, teacher=TeacherPatches.ALL))  # type: ignore[arg-type]  # a stand-in
    assert [e.stage for e in events if isinstance(e, StageDone)] == ["tissue", "student (LR)", "teacher (HR)"]
    assert isinstance(events[-1], Finished) and sum(isinstance(e, Finished) for e in events) == 1
    for stage in ("student (LR)", "teacher (HR)"):
        steps = [(e.done, e.total) for e in events if isinstance(e, Progress) and e.stage == stage]
        assert len(steps) > 1 and steps == sorted(set(steps)) and steps[-1][0] == steps[-1][1]


def test_the_middle_of_a_grid_comes_first() -> None:
    """3 x 3 patches of 256 x 320: the centre, its neighbours by distance and in their order, the corners last."""
    corners = np.array([(1000 + 256 * x, 320 * y) for y in range(3) for x in range(3)])
    assert center_first_order(corners, np.arange(9)).tolist() == [4, 3, 5, 1, 7, 0, 2, 6, 8]
    assert center_first_order(corners, np.array([0, 1, 8])).tolist() == [1, 0, 8], "the middle of all, not of these"
    assert center_first_order(corners, np.array([], dtype=np.int64)).tolist() == []


def test_with_a_cache_patches_are_encoded_from_the_middle_and_told_in_reading_order(tmp_path: Path) -> None:
    """The live view shows the middle of the view first; what is returned does not depend on that order."""
    encoded: list[list[int]] = []

    class Recorder(EmbeddingCache):
        def put(self, key: CacheKey, index: np.ndarray, features: np.ndarray) -> None:
            encoded.extend(index.tolist())
            super().put(key, index, features)

    fake = FakeSlide(speckled(2100, 1700), PYRAMID, resolution(0.5, 0.4))
    with fake_slide(tmp_path, fake) as slide:
        alone = run(slide, DarknessBundle())
        cached = result(predict(slide, DarknessBundle(), device=CPU, cache=Recorder()))  # type: ignore[arg-type]
    index = cached.grid.lr_index
    middle = (index.min(axis=0) + index.max(axis=0)) / 2 * cached.grid.lattice.lr_cell
    distances = np.linalg.norm(np.array(encoded) * cached.grid.lattice.lr_cell - middle, axis=1)
    assert sorted(encoded) == sorted(index.tolist()) and len(encoded) > 20
    assert (np.diff(distances) >= -1e-9).all() and distances[0] < distances[-1] / 4
    np.testing.assert_allclose(cached.student.attention, alone.student.attention, rtol=1e-6)


def test_without_a_teacher_scipys_statistics_are_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    """They take half a second to import, and serve comparisons only."""
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with fake_slide(tmp_path, pyramid()) as slide:
        assert run(slide, bundle).teacher is None
        with pytest.raises(ImportError, match=r"scipy\.stats"):
            run(slide, bundle, teacher="all")


def test_an_odd_resolution_is_a_notice_and_a_warning_in_the_result(tmp_path: Path) -> None:
    with fake_slide(tmp_path, pyramid(mpp=(0.36, 0.35))) as slide:
        events = list(predict(slide, DarknessBundle(), device=CPU))  # type: ignore[arg-type]  # a stand-in
    notices = [e for e in events if isinstance(e, Notice)]
    assert len(notices) == 1 and notices[0].subject == "fake" and "15 %" in notices[0].message
    assert events[-1].result.warnings == (notices[0].message,)  # type: ignore[union-attr]  # Finished


def test_far_colour_is_a_notice_and_a_warning_and_its_pixels_count(tmp_path: Path) -> None:
    fields = ((0.9,) * 3, (0.9,) * 3, (0.02,) * 3, (0.02,) * 3, 9)
    with fake_slide(tmp_path, pyramid(2100, 1700)) as slide:
        events = list(predict(slide, DarknessBundle(colour=CohortColour(*fields)), device=CPU))  # type: ignore[arg-type]
        decoded = slide.pixels_decoded
    (notice,) = (e for e in events if isinstance(e, Notice))
    prediction = events[-1].result  # type: ignore[union-attr]  # Finished
    assert "staining is far outside" in notice.message and prediction.warnings == (notice.message,)
    assert prediction.student.pixels_decoded == decoded


@pytest.mark.parametrize("stage", ["tissue", "student (LR)", "teacher (HR)"])
def test_closing_the_stream_cancels_and_the_slide_stays_usable(tmp_path: Path, stage: str) -> None:
    fake = pyramid(2100, 1700)
    with fake_slide(tmp_path, fake) as slide:
        events = predict(slide, DarknessBundle(), device=CPU, teacher=TeacherPatches.ALL)  # type: ignore[arg-type]  # a stand-in
        for event in events:
            if isinstance(event, Progress) and event.stage == stage:
                assert event.done < event.total
                break
        events.close()  # type: ignore[attr-defined]  # a generator
        reads = len(fake.reads)
        assert list(events) == []
        assert run(slide, DarknessBundle()).student.attention.sum() == pytest.approx(1, abs=1e-4)
        assert len(fake.reads) > reads
    assert all(handle.closed and not handle.closed_while_reading for handle in fake.handles)


def test_after_closing_nothing_more_is_read(tmp_path: Path) -> None:
    fake = pyramid(2100, 1700)
    slide = fake_slide(tmp_path, fake)
    events = predict(slide, DarknessBundle(), device=CPU)  # type: ignore[arg-type]  # a stand-in
    while not (isinstance(event := next(events), Progress) and event.stage == "student (LR)"):
        pass
    events.close()  # type: ignore[attr-defined]  # a generator
    reads = len(fake.reads)
    slide.close()  # waits for any read under way
    assert len(fake.reads) == reads


# ---------------------------------------------------------------- what is refused


def test_a_bundle_without_teacher_is_told_before_the_student_has_worked(tmp_path: Path) -> None:
    bundle, fake = lively_bundle(tmp_path / "b", teacher=False), pyramid()
    with fake_slide(tmp_path, fake) as slide, pytest.raises(BundleError, match="no teacher"):
        run(slide, bundle, teacher="all")
    assert fake.reads == [], "minutes of reading on a real slide, then lost"


def test_a_slide_between_lr_and_hr_has_a_student_but_no_teacher(tmp_path: Path, bundle: Bundle) -> None:
    fake = FakeSlide(speckled(600, 500), (1.0, 4.0), resolution(1.0))
    with fake_slide(tmp_path, fake) as slide:
        with pytest.raises(ResolutionError, match=r"too coarse for the teacher \(HR\), which needs 0\.5") as caught:
            run(slide, bundle, teacher="all")
        assert fake.reads == [] and one_sentence(caught.value)
        assert run(slide, bundle).student.attention.sum() == pytest.approx(1, abs=1e-4)


def test_no_tissue_and_too_coarse_are_one_sentence_each(tmp_path: Path, bundle: Bundle) -> None:
    empty = FakeSlide(glass(900, 500), properties=resolution(0.5))
    expected = r"no tissue found \(needs 25 %"
    with fake_slide(tmp_path, empty) as slide, pytest.raises(TissueError, match=expected) as no_tissue:
        run(slide, bundle)
    coarse = FakeSlide(speckled(400, 300), properties=resolution(4.0))
    with (
        fake_slide(tmp_path, coarse) as slide,
        pytest.raises(ResolutionError, match="too coarse for the") as too_coarse,
    ):
        run(slide, bundle)
    assert one_sentence(no_tissue.value) and one_sentence(too_coarse.value)


def test_altered_weights_stop_the_run_with_their_sentence(tmp_path: Path) -> None:
    bundle = lively_bundle(tmp_path / "b")
    content = bytearray((bundle.path / "student.safetensors").read_bytes())
    content[-3] ^= 8
    (bundle.path / "student.safetensors").write_bytes(content)
    with fake_slide(tmp_path, pyramid()) as slide, pytest.raises(BundleError, match="does not match the hash"):
        run(slide, Bundle(bundle.path))


# ---------------------------------------------------------------- real slides


@pytest.mark.parametrize(
    "name",
    ["CMU-1-Small-Region.svs", "CMU-1-Small-Region_dicom", "derived/CMU-1-Small-Region_pyramid_aperio.svs"],
)
def test_cmu_1_as_svs_dicom_and_pyramid(shared_data: Path, bundle: Bundle, name: str) -> None:
    with Slide(shared_data / "slides" / name) as slide:
        prediction = run(slide, bundle)
    check_sums(prediction.student, bundle.student.mil.classifier.bias)
    assert prediction.student.patch_level0 == (256, 256)
    assert 50 <= len(prediction.student.coords) <= 9 * 12


def test_the_same_slide_in_three_containers_is_seen_alike(shared_data: Path) -> None:
    """The same patches, and attention that ranks them alike, whichever way the 5x pixels were come by."""
    readings = []
    for name in ("CMU-1-Small-Region.svs", "CMU-1-Small-Region_dicom", "derived/CMU-1-Small-Region_pyramid_aperio.svs"):
        with Slide(shared_data / "slides" / name) as slide:
            readings.append(run(slide, DarknessBundle()).student)
    common = set.intersection(*({tuple(c) for c in r.coords.tolist()} for r in readings))
    assert len(common) >= 0.9 * max(len(r.coords) for r in readings)
    maps = [{tuple(c): a for c, a in zip(r.coords.tolist(), r.attention, strict=True)} for r in readings]
    values = np.array([[m[c] for c in sorted(common)] for m in maps])
    assert np.corrcoef(values).min() > 0.98
    assert readings[0].pixels_decoded > 10 * readings[2].pixels_decoded, "native 5x pixels are the saving"


@pytest.mark.parametrize("name", ["monuseg_TCGA-A7-A13E_40x_aperio.svs", "monuseg_TCGA-A7-A13E_40x_generic.tif"])
def test_a_slide_of_250_micrometres_is_predicted_from_the_patches_there_are(
    shared_data: Path, bundle: Bundle, name: str
) -> None:
    with Slide(shared_data / "slides" / "derived" / name) as slide:
        prediction = run(slide, bundle)  # 250 µm: 1.95 patches of 128 µm, all of it tissue
        check_sums(prediction.student, bundle.student.mil.classifier.bias)
        assert prediction.student.coords.tolist() == [[0, 0], [512, 0], [0, 512], [512, 512]]


def test_fluorescence_and_an_overview_are_refused_with_a_reason(shared_data: Path, bundle: Bundle) -> None:
    slides = shared_data / "slides"
    no_tissue, coarse = r"no tissue found.*stained brightfield", r"28\.97 µm per pixel .* too coarse"
    with Slide(slides / "test3-TRITC 2 (560).ndpi") as slide, pytest.raises(TissueError, match=no_tissue):
        run(slide, bundle)
    with Slide(slides / "camelyon_overview_jpeg") as slide, pytest.raises(ResolutionError, match=coarse):
        run(slide, bundle)


# ---------------------------------------------------------------- readers


@pytest.mark.parametrize(("downsamples", "exact"), [((1, 4), True), ((1,), False)])
def test_both_readers_give_the_same_answer(
    tmp_path: Path, bundle: Bundle, downsamples: tuple[int, ...], exact: bool
) -> None:
    """From the student's own level bit for bit; where it is missing and tiles are reduced, nearly."""
    path = write_jpeg_slide(tmp_path / "a.svs", tissue(2304, 1792), downsamples, Kind("aperio"))
    predictions = {}
    for reader in ("tiles", "openslide"):
        with Slide(path, reader=reader) as slide:
            predictions[reader] = run(slide, bundle, teacher="top-2")
            assert predictions[reader].reader == slide.reader
    fast, reference = predictions["tiles"], predictions["openslide"]
    files = build_prediction_file(fast), build_prediction_file(reference)
    assert files[0].reader == "tiles" and fast.reader_option == "auto"
    assert ("decoded at 1/4" in str(files[0].reader_reason)) != exact
    assert files[1].reader_reason == "asked for" and reference.reader_option == "openslide"
    assert fast.student.pixels_decoded == reference.student.pixels_decoded > 0
    np.testing.assert_array_equal(fast.student.coords, reference.student.coords)
    assert len(fast.student.coords) > 20
    np.testing.assert_allclose(fast.student.attention, reference.student.attention, rtol=1e-6 if exact else 0.05)
    for name in CLASSES:
        assert fast.student.probabilities[name] == pytest.approx(
            reference.student.probabilities[name], abs=1e-7 if exact else 1e-2
        )
