"""LazySlide writes a store that we read, and loads annotations that we write; it runs in an interpreter of its own.

It is no dependency of this project: without it in this environment, the variable ``LRMIL_LAZYSLIDE_PYTHON`` names the
Python of another environment that has LazySlide 0.13 (``pip install lazyslide==0.13.0`` in a new one).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_lrmil.core.features.extraction import PatchSet
from napari_lrmil.core.features.layouts.find import find_feature_folder
from napari_lrmil.core.features.layouts.proof import prove_patches
from napari_lrmil.core.slides.slide import Slide
from support import lazyslide_child
from support.phantoms import copy_cohort
from support.trained import Trained

VARIABLE = "LRMIL_LAZYSLIDE_PYTHON"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lazyslide() -> Callable[..., dict[str, Any]]:
    """Return a function that runs a command of `lazyslide_child`."""
    python = os.environ.get(VARIABLE) or (sys.executable if find_spec("lazyslide") else "")
    if not python:
        pytest.skip(f"LazySlide is not installed here, and {VARIABLE} names no Python that has it")

    def run(*words: object) -> dict[str, Any]:
        call = [python, str(Path(lazyslide_child.__file__)), *map(str, words)]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(call, env=env, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-2000:]
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    return run


@pytest.fixture(scope="module")
def slide_file(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy_cohort(phantoms, folder := tmp_path_factory.mktemp("slides"), test=1)
    return next(folder.glob("*.tif"))


def test_a_store_of_lazyslide_is_read_with_every_tile_in_its_place(
    lazyslide: Callable[..., dict[str, Any]], slide_file: Path, tmp_path: Path
) -> None:
    """Its features are mean and maximum of each channel, so those of our pixels at our places must be the same."""
    pytest.importorskip("zarr", reason="the extra `lazyslide` is not installed")
    written = lazyslide("write", slide_file, tmp_path / f"{slide_file.stem}.zarr")
    foreign = find_feature_folder(tmp_path).open(slide_file.stem)
    assert (foreign.layout, foreign.encoder, foreign.patch_px) == ("LazySlide", "statistics", lazyslide_child.TILE_PX)
    assert foreign.shape == (written["tiles"], 6) and written["tiles"] > 20
    with Slide(slide_file) as slide:
        assert foreign.level0_size == (slide.width, slide.height)
        patches = prove_patches(foreign, slide)
        assert patches.side == lazyslide_child.TILE_PX and patches.mpp == pytest.approx(lazyslide_child.MPP)
        pixels = PatchSet(patches.corners, (patches.side, patches.side), patches.side).read(slide, slice(None))
    values = np.asarray(pixels, dtype=np.float64)
    channels = int(np.argmin(values.shape[1:])) + 1  # of 3 values
    values = np.moveaxis(values, channels, -1).reshape(len(values), -1, 3)
    expected = np.concatenate([values.mean(axis=1), values.max(axis=1)], axis=1)
    stored = np.concatenate([rows for _, rows in foreign.chunks()])
    np.testing.assert_allclose(stored, expected, atol=1e-3)
    assert len(np.unique(stored, axis=0)) > 20, "places that all look alike would prove nothing"


def test_lazyslide_loads_our_attention(
    lazyslide: Callable[..., dict[str, Any]],
    slide_file: Path,
    trained: Trained,
    tmp_path: Path,
    call: Callable[..., tuple[int, str, str]],
) -> None:
    """Every tile with its area and its measurements."""
    code, _, err = call("predict", slide_file, "--bundle", trained.run / "bundle", "--out", tmp_path)
    assert code == 0, err
    (file,) = tmp_path.rglob("attention.geojson")
    tiles = json.loads(file.read_text())["features"]
    loaded = lazyslide("load", slide_file, file)
    assert loaded["count"] == len(tiles) > 0
    corners = [np.asarray(tile["geometry"]["coordinates"][0]) for tile in tiles]
    assert loaded["area"] == pytest.approx(sum(float(np.prod(np.ptp(ring, axis=0))) for ring in corners))
    for name in tiles[0]["properties"]["measurements"]:
        assert name in loaded["first"], loaded
