"""OpenGL context of napari's canvas, made current before napari deletes the visuals of removed layers.

Outside a paint event the current context is that of Qt's compositor, left over from the last frame. napari (0.9.2:
``VispyCanvas._clean_and_update_scenegraph``) deletes the shader programs of a removed layer in whichever context is
current. Mesa's drivers that compile shaders per context, such as software OpenGL, cannot delete them there. They keep
the shaders until the canvas draws again, and then unbind the canvas's shaders without marking that state as changed.
The next frame may use only the program of the last one, for example if a single image is left. The process then dies
of a null pointer.
"""

from __future__ import annotations

from inspect import unwrap
from typing import TYPE_CHECKING
from weakref import WeakSet

from qtpy.compat import isalive

if TYPE_CHECKING:
    from napari.viewer import Viewer

_guarded: WeakSet[Viewer] = WeakSet()


def guard_layer_removal(viewer: Viewer) -> None:
    """Make the canvas's OpenGL context current whenever layers are removed; a viewer is guarded once.

    Parameters
    ----------
    viewer
        A viewer with a window, or the proxy of one that napari hands to a plugin's widget. The guard lasts as long as
        the viewer's canvas.
    """
    viewer = unwrap(viewer)  # the canvas is private: the proxy warns of it, and its wrapper is another object each time
    if viewer in _guarded:
        return
    _guarded.add(viewer)
    canvas = viewer.window._qt_viewer.canvas.native

    def make_current() -> None:
        if isalive(canvas) and canvas.isValid():  # a window that is closed, or not yet shown, has no context
            canvas.makeCurrent()

    # Before `removed`: napari calls its own handlers of an event first, and no frame is drawn between the two.
    viewer.layers.events.removing.connect(make_current)
