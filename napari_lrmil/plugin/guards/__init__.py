"""Guards against faults of napari's window: ends and freezes of the process, stolen focus; each module says which."""

from __future__ import annotations

from inspect import unwrap
from typing import TYPE_CHECKING

from napari_lrmil.plugin.guards.gl_context import guard_layer_removal
from napari_lrmil.plugin.guards.notification_focus import guard_notification_focus
from napari_lrmil.plugin.guards.slice_delivery import guard_slice_delivery

if TYPE_CHECKING:
    from napari.viewer import Viewer


def guard_viewer(viewer: Viewer) -> None:
    """Guard a viewer against all these faults; a viewer is guarded once.

    Parameters
    ----------
    viewer
        A viewer with a window, or the proxy of one that napari hands to a plugin's widget. The guards last as long as
        the viewer, that of the focus as long as the process.
    """
    if not hasattr(unwrap(viewer), "window"):  # a model of layers alone has none of these faults
        return
    guard_layer_removal(viewer)
    guard_slice_delivery(viewer)
    guard_notification_focus()
