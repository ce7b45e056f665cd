"""The public functions of the package, as a notebook uses them."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import napari_lrmil
from napari_lrmil.core.errors import ConfigError, StoredError
from napari_lrmil.core.events import Event, Finished, Progress
from napari_lrmil.core.phantom import PhantomSlide, write_slide
from napari_lrmil.core.results.writer import write_prediction

PUBLIC = {"extract_features", "load_bundle", "open_slide", "predict", "predict_patients", "read_prediction", "train"}


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("api"), PhantomSlide("phantom", "lesion", 5, (1536, 1280), 0.5))


def test_import_loads_neither_torch_nor_qt() -> None:
    code = (
        "import sys, napari_lrmil; "
        "heavy = {'torch', 'qtpy', 'napari', 'lightning', 'transformers', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_function_is_listed_and_documented() -> None:
    assert set(dir(napari_lrmil)) >= PUBLIC
    assert set(napari_lrmil.__all__) - {"__version__"} == PUBLIC
    for name in PUBLIC:
        assert "Parameters\n" in getattr(napari_lrmil, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = napari_lrmil.absent


def test_predict_takes_an_open_slide_or_a_path_and_answers_alike(slide_path: Path) -> None:
    events: list[Event] = []
    by_path = napari_lrmil.predict(slide_path, runtime="torch", device="cpu", teacher="top-2", on_event=events.append)
    with napari_lrmil.open_slide(slide_path) as slide:
        by_slide = napari_lrmil.predict(slide, napari_lrmil.load_bundle(), runtime="torch", device="cpu")
        assert slide.read_level(0, 0, 0, 8, 4).shape == (4, 8, 3), "the slide of the caller stays open"
    assert by_path.student.probabilities == by_slide.student.probabilities
    assert by_path.student.attention.sum() == pytest.approx(1, abs=1e-5)
    assert by_path.agreement is not None and by_path.agreement.n_patches == 2
    assert by_slide.teacher is None
    assert any(isinstance(event, Progress) for event in events) and isinstance(events[-1], Finished)


def test_what_the_user_should_know_is_logged_as_a_warning(slide_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "napari_lrmil"):
        prediction = napari_lrmil.predict(slide_path, runtime="torch", device="cpu")
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert prediction.warnings and all(any(text in line for line in warned) for text in prediction.warnings)
    assert {record.name.split(".")[0] for record in caplog.records} == {"napari_lrmil"}


@pytest.mark.parametrize(("network", "patches"), [("student", "lr_index"), ("teacher", "hr_index")])
def test_features_are_those_of_the_prediction(slide_path: Path, network: str, patches: str) -> None:
    bundle = napari_lrmil.load_bundle()
    bag = napari_lrmil.extract_features(slide_path, bundle, network=network, device="cpu")  # type: ignore[arg-type]
    prediction = napari_lrmil.predict(slide_path, bundle, runtime="torch", device="cpu", teacher="all")
    assert prediction.teacher is not None
    reading = prediction.student if network == "student" else prediction.teacher
    np.testing.assert_array_equal(bag.coords, reading.coords)
    assert len(bag.features) == len(getattr(prediction.grid, patches))
    mil = getattr(bundle, network).mil
    import torch

    with torch.no_grad():
        attention = mil(torch.from_numpy(bag.features)).attention.numpy()
    np.testing.assert_allclose(attention.ravel(), reading.attention, atol=1e-6)
    assert bag.origin.target_mpp == reading.target_mpp


def test_features_of_an_unknown_network_are_refused(slide_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 'student' or 'teacher'"):
        napari_lrmil.extract_features(slide_path, network="pupil")  # type: ignore[arg-type]


def test_a_stored_prediction_reads_back_without_slide_and_model(slide_path: Path, tmp_path: Path) -> None:
    with napari_lrmil.open_slide(slide_path) as slide:
        prediction = napari_lrmil.predict(slide, runtime="torch", device="cpu", teacher="all")
        folder = write_prediction(tmp_path, slide, prediction)
    stored = napari_lrmil.read_prediction(folder)
    assert stored.probabilities == prediction.student.probabilities
    assert stored.predicted == prediction.student.predicted
    np.testing.assert_array_equal(stored.student.coords, prediction.student.coords)
    np.testing.assert_allclose(stored.student.attention, prediction.student.attention)
    assert stored.teacher is not None and prediction.teacher is not None and stored.agreement is not None
    np.testing.assert_allclose(stored.teacher.attention, prediction.teacher.attention)
    (folder / "attention.h5").unlink()
    with pytest.raises(StoredError, match=r"attention\.h5"):
        napari_lrmil.read_prediction(folder)


def test_train_refuses_a_folder_that_cannot_be_written_before_it_reads_anything(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match="cannot be written"):
        napari_lrmil.train(tmp_path / "no-table.csv", tmp_path / "file" / "run")


def test_train_refuses_settings_beside_a_whole_configuration(tmp_path: Path) -> None:
    from lrmil_training.config import TrainConfig

    with pytest.raises(ConfigError, match="settings go with a file or a preset"):
        napari_lrmil.train(tmp_path / "cohort.csv", tmp_path / "run", TrainConfig(), settings=["seed=1"])
