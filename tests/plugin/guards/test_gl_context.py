"""Removed layers: which OpenGL context their visuals are deleted in, and the crash if it is another's."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from napari_lrmil.plugin.guards.gl_context import guard_layer_removal
from support.window import WAIT_MS, require_screen

# A Shapes layer is removed and a single image stays, so the next two frames use one shader program. Without the guard,
# a process with software OpenGL dies of a segmentation fault in the first or second round; to see it, leave "guarded"
# out of the arguments. A dock would hide the crash, because its scale bar is drawn by a second program.
REMOVALS = """
import sys
import napari
import numpy as np
from qtpy.QtWidgets import QApplication
from napari_lrmil.plugin.guards.gl_context import guard_layer_removal

viewer = napari.Viewer(show=True)
if "guarded" in sys.argv:
    guard_layer_removal(viewer)

def draw():
    for _ in range(5):
        QApplication.instance().processEvents()

for several in (False, False, True, True):
    if not viewer.layers:
        viewer.add_image(np.ones((64, 64)))
    shapes = viewer.add_shapes([np.array([[0, 0], [0, 50], [50, 50], [50, 0]])], shape_type="polygon")
    draw()
    shapes.selected_data = {0}
    draw()
    viewer.layers.clear() if several else viewer.layers.remove(shapes)
    draw()
    viewer.add_image(np.ones((32, 32)))
    draw()
    viewer.layers.pop()
viewer.close()
print("drawn to the end")
"""


def test_layers_are_removed_in_the_context_of_the_canvas(
    viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qtpy.QtGui import QOpenGLContext
    from vispy.gloo.context import GLContext

    canvas, contexts = viewer.window._qt_viewer.canvas.native, []
    monkeypatch.setattr(GLContext, "finish", lambda _: contexts.append(QOpenGLContext.currentContext()))
    guard_layer_removal(viewer)
    image = viewer.add_image(np.ones((8, 8)))
    viewer.add_image(np.ones((8, 8)))
    qtbot.waitUntil(canvas.isValid, timeout=WAIT_MS)
    canvas.doneCurrent()
    viewer.layers.remove(image)
    canvas.doneCurrent()
    viewer.layers.clear()
    assert len(contexts) == 2 and all(context is canvas.context() for context in contexts)


@pytest.mark.filterwarnings("error::FutureWarning")  # napari's word about private attributes
def test_a_viewer_is_guarded_once_however_napari_hands_it_out(viewer: Any) -> None:
    from napari.utils._proxies import PublicOnlyProxy

    guard_layer_removal(viewer)
    before = len(viewer.layers.events.removing.callbacks)
    guard_layer_removal(PublicOnlyProxy(viewer))
    guard_layer_removal(viewer)
    assert len(viewer.layers.events.removing.callbacks) == before


@pytest.mark.slow
def test_a_process_survives_that_a_shapes_layer_is_removed() -> None:
    require_screen()
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", REMOVALS, "guarded"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "drawn to the end" in done.stdout, done.stderr
