"""`view` and `demo`: what they need, and the picture that the demo leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from napari_lrmil.core.cohort.predict_task import summarize_prediction
from napari_lrmil.core.errors import BundleError, LrmilError
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.slides.place_link import PlaceLink
from napari_lrmil.plugin import launch
from support.fake_slides import one_sentence, speckled, write_tiff


@pytest.fixture
def no_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend to be a Linux machine without a screen."""
    monkeypatch.setattr(launch.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


def test_a_slide_that_is_not_there_is_told_before_a_window_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "has_display", lambda: True)
    monkeypatch.setattr(launch, "_load_napari", lambda **_: pytest.fail("napari was loaded"))
    with pytest.raises(LrmilError, match="no such file"):
        launch.open_viewer([tmp_path / "away.svs"], None, None)


def test_a_link_is_checked_before_a_window_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "has_display", lambda: True)
    monkeypatch.setattr(launch, "_load_napari", lambda **_: pytest.fail("napari was loaded"))
    link = PlaceLink(tmp_path / "away.svs", 1.0, 2.0, 20.0).as_text()
    with pytest.raises(LrmilError, match=r"away\.svs: no such file"):
        launch.open_viewer([Path(link)], None, None)
    with pytest.raises(LrmilError, match="lacks magnification"):
        launch.open_viewer([Path(link.rpartition(",")[0])], None, None)


@pytest.mark.usefixtures("no_screen")
def test_without_a_screen_view_says_so() -> None:
    with pytest.raises(LrmilError, match="no screen") as refused:
        launch.open_viewer([], None, None)
    assert one_sentence(refused.value)


@pytest.mark.usefixtures("no_screen")
def test_without_any_screen_the_demo_names_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.shutil, "which", lambda _: None)
    with pytest.raises(LrmilError, match="xvfb xauth libgl1") as refused:
        launch.run_demo(tmp_path, None, "demo", headless=True)
    assert one_sentence(refused.value)


@pytest.mark.usefixtures("no_screen")
def test_without_a_screen_the_demo_calls_itself_on_a_virtual_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    class Done:
        returncode = 0

    def run(call: list[str], **_: object) -> Done:
        calls.append(call)
        (tmp_path / "demo.png").touch()
        return Done()

    monkeypatch.setattr(launch.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(launch.subprocess, "run", run)
    slide = tmp_path / "a.svs"
    slide.touch()
    assert launch.run_demo(tmp_path, slide, "demo", headless=False) is None
    [call] = calls
    assert call[0] == "xvfb-run" and "--headless" in call and call[-2:] == ["--slide", str(slide)]


def test_a_missing_slide_leaves_the_earlier_picture(tmp_path: Path) -> None:
    (tmp_path / "demo.png").touch()
    with pytest.raises(LrmilError, match="no such file"):
        launch.run_demo(tmp_path, tmp_path / "away.svs", "demo", headless=True)
    assert (tmp_path / "demo.png").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("qapp")
def test_the_demo_leaves_a_picture_and_the_predictions_files(tmp_path: Path, slide_path: Path, bundle: Bundle) -> None:
    result = launch.run_demo(tmp_path, slide_path, bundle.path, headless=True)
    assert result is not None and result.picture == tmp_path / "demo.png" and result.folder == tmp_path / "tissue"
    assert summarize_prediction(result.prediction).startswith(("normal", "lesion"))
    pixels = np.asarray(Image.open(result.picture))
    assert pixels.shape == (900, 1600, 3) and pixels.std() > 20
    written = {p.name for p in (tmp_path / "tissue").iterdir()}
    assert {"prediction.json", "attention.h5", "teacher_attention.h5", "agreement.json", "overlay.png"} <= written


@pytest.mark.usefixtures("qapp")
def test_where_the_teacher_cannot_run_the_demo_shows_the_student(tmp_path: Path, bundle: Bundle) -> None:
    slide = write_tiff(tmp_path / "coarse.tif", speckled(640, 512), (1.0,), mpp=(1.0, 1.0))
    launch.run_demo(tmp_path, slide, bundle.path, headless=True)
    stored = json.loads((tmp_path / "coarse" / "prediction.json").read_text())
    assert "teacher" not in stored and not (tmp_path / "coarse" / "teacher_attention.h5").exists()


@pytest.mark.usefixtures("qapp")
def test_a_wrong_bundle_or_slide_ends_the_demo_in_one_sentence(tmp_path: Path, bundle: Bundle) -> None:
    slide = write_tiff(tmp_path / "far.tif", speckled(640, 512), (1.0,), mpp=(8.0, 8.0))
    with pytest.raises(BundleError, match="bundle"):
        launch.run_demo(tmp_path, slide, tmp_path / "nothing", headless=True)
    with pytest.raises(LrmilError, match="too coarse for the student"):
        launch.run_demo(tmp_path, slide, bundle.path, headless=True)
    assert not (tmp_path / "demo.png").exists()
