"""Bundles, slides and a real napari window for the plugin's tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.fake_slides import lively_bundle, speckled, write_tiff
from napari_lrmil.core.bundle import Bundle

HAS_SCREEN = not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY"))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with student and teacher."""
    return lively_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def slide_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pyramid that OpenSlide opens: 0.64 x 0.5 mm of tissue at 0.5 µm: 5 x 4 LR patches."""
    folder = tmp_path_factory.mktemp("slide")
    return write_tiff(folder / "tissue.tif", speckled(1280, 1000), (1.0, 4.0), mpp=(0.5, 0.5))


@pytest.fixture
def viewer() -> Iterator[Any]:
    """Open a real window; skip where there is no screen."""
    if not HAS_SCREEN:
        pytest.skip("no screen: run under xvfb-run -a -s '-screen 0 1920x1200x24 +extension GLX'")
    import napari

    opened = napari.Viewer(show=True)
    opened.window._qt_window.resize(1280, 800)
    yield opened
    try:
        opened.close()
    except RuntimeError:  # the test has closed it
        pass
