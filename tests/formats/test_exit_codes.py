"""Exit codes: scripts tell a wrong call (2) from a failure (1), from some slides that failed (3), from a stop (130)."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lrmil_training
import napari_lrmil.core
from lrmil_training.fitting.plan import DivergedError, StoppedError
from lrmil_training.runs.lock import LockedError
from napari_lrmil.core import errors
from napari_lrmil.core.patching.outlines import OutlineError
from support.shapes import STORED

Call = Callable[..., tuple[int, str, str]]

SLIDE = STORED / "slides" / "test-13-002.tif"
CODES: dict[type[errors.LrmilError], int] = {
    errors.LrmilError: 1,
    errors.DiskFullError: 1,
    errors.SlideError: 1,
    errors.ResolutionError: 1,
    errors.TissueError: 1,
    errors.MissingTilesError: 1,
    errors.BagError: 1,
    errors.StoredError: 1,
    errors.ReviewError: 1,
    errors.NewerSchemaError: 1,
    LockedError: 1,
    DivergedError: 1,
    errors.GeometryError: 2,
    errors.RegionError: 2,
    OutlineError: 2,
    errors.EncoderError: 2,
    errors.BundleError: 2,
    errors.CohortError: 2,
    errors.ConfigError: 2,
    StoppedError: 130,
}


def kinds(base: type[errors.LrmilError]) -> Iterator[type[errors.LrmilError]]:
    yield base
    for kind in base.__subclasses__():
        yield from kinds(kind)


def test_every_error_has_its_code() -> None:
    for package in (napari_lrmil.core, lrmil_training):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    ours = [kind for kind in kinds(errors.LrmilError) if kind.__module__.startswith(("napari_lrmil", "lrmil_training"))]
    assert {kind: kind.exit_code for kind in ours} == CODES


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--version"], 0),
        (["predict", "--help"], 0),
        (["info", SLIDE], 0),
        (["dance"], 2),
        (["info", SLIDE, "--dance"], 2),
        (["info", "nowhere.tif"], 1),
        (["predict", SLIDE, "--bundle", "nowhere"], 2),
        (["predict", "nowhere.tif", "--out", "{out}"], 3),
        (["predict", SLIDE, "--device", "abacus"], 2),
        (["compare", SLIDE, "--teacher", "none"], 2),
        (["train", "nowhere.csv", "--out", "{out}"], 2),
        (["train", "nowhere.csv", "--out", "{out}", "--set", "dance=1"], 2),
        (["features", "nowhere.csv", "--encoder", "nowhere", "--out", "{out}"], 2),
    ],
)
def test_codes_of_calls(call: Call, tmp_path: Path, words: list[object], code: int) -> None:
    found, _, said = call(*(str(word).format(out=tmp_path) for word in words))
    assert found == code, said


def test_what_was_not_foreseen(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("napari_lrmil.core.slides.slide.Slide.__init__", fail)
    code, _, said = call("info", SLIDE)
    assert code == 1 and "a bug" in said


def test_ctrl_c(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("napari_lrmil.core.slides.slide.Slide.__init__", interrupt)
    assert call("predict", SLIDE, "--out", tmp_path)[0] == 130


def test_ctrl_c_in_training_says_how_to_go_on(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lrmil_training.train.read_cohort", interrupt)
    code, _, said = call("train", "any.csv", "--out", tmp_path, "--ignore-disk")
    assert code == 130 and "training was cancelled; start the same command again" in said
