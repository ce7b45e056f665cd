"""Memory and open files after slides were opened, analysed and closed."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from napari_lrmil.plugin.viewer.layers import add_layers
from napari_lrmil.plugin.viewer.opening.reader import read_slide_layers
from support.fake_slides import speckled, write_tiff
from support.window import WAIT_MS, MakeDock

SLIDES, SETTLED = 20, 5
MOST_GROWTH = 1.1

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def resident_mb() -> float:
    """Return the memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files(folder: Path) -> list[str]:
    """Return the files below `folder` that this process holds open."""
    names = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            names.append(os.readlink(link))
        except OSError:  # closed in the meantime
            continue
    return [name for name in names if name.startswith(str(folder))]


@pytest.mark.slow
def test_twenty_slides_leave_nothing(make_dock: MakeDock, viewer: Any, qtbot: Any, tmp_path: Path) -> None:
    dock = make_dock(None)
    memory = []
    for i in range(SLIDES):
        path = write_tiff(tmp_path / f"slide_{i}.tif", speckled(1280, 1000, seed=i), (1.0, 4.0), mpp=(0.5, 0.5))
        add_layers(viewer, read_slide_layers(path))
        qtbot.waitUntil(
            lambda path=path: dock.session.slide is not None and dock.session.slide.path == path, timeout=WAIT_MS
        )
        dock.run_button.native.click()
        qtbot.waitUntil(lambda: not dock.session.is_busy, timeout=WAIT_MS)
        assert dock.session.prediction is not None, dock.session.message
        viewer.layers.clear()
        qtbot.waitUntil(lambda: dock.session.slide is None, timeout=WAIT_MS)
        gc.collect()
        memory.append(resident_mb())

    def all_closed() -> bool:
        gc.collect()
        return open_files(tmp_path) == []

    qtbot.waitUntil(all_closed, timeout=WAIT_MS)
    assert memory[-1] <= MOST_GROWTH * memory[SETTLED - 1], memory
