"""Own parts of the shaders that draw images: cut pictures, and lines of constant width on the screen.

napari cuts no images in 2D. Its canvas is private: without a window nothing happens, and no data of a layer changes.
"""

from __future__ import annotations

from inspect import unwrap
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

Variables = Any  # function of a shader, to whose variables values are assigned by name
KEEP_POSITION = "void keep_position() { $position = gl_Position; }"
# A visual has its parts; held here otherwise, they would keep it and its pixels alive.
_parts: WeakKeyDictionary[Any, dict[str, ref[Variables]]] = WeakKeyDictionary()


def find_visual(viewer: ViewerModel, layer: Image) -> Any | None:
    """Return what draws an image; None without a window, and if napari draws it in several textures."""
    window = getattr(unwrap(viewer), "window", None)
    visual = window._qt_viewer.canvas.layer_to_visual.get(layer) if window is not None else None
    return visual.node if visual is not None and hasattr(visual.node, "attach") else None


def find_part(visual: Any, code: str) -> Variables | None:
    """Return the variables of a part that was added to a visual; None if it was not."""
    part = _parts.get(visual, {}).get(code)
    return part() if part is not None else None


def add_part(visual: Any, code: str, **filter_options: Any) -> Variables:
    """Return the variables of a part of the fragment shader of a visual, which is added if it is missing.

    Parameters
    ----------
    visual
        What draws an image.
    code
        A function in GLSL. `$to_pixels($position)` is the place of the fragment in pixels of the image, x then y,
        counted from the corner of the first one.
    filter_options
        Keyword arguments of vispy's `Filter`: where the part is added.
    """
    from vispy.visuals.filters.base_filter import Filter  # type: ignore[import-untyped]
    from vispy.visuals.shaders import Varying  # type: ignore[import-untyped]

    present = find_part(visual, code)
    if present is not None:
        return present
    part = Filter(vcode=KEEP_POSITION, vpos=1, fcode=code, **filter_options)
    part.vshader["position"] = part.fshader["position"] = Varying("position_of_part", "vec4")
    part.fshader["to_pixels"] = visual.get_transform("render", "visual")
    visual.attach(part)
    _parts.setdefault(visual, {})[code] = ref(part.fshader)
    return part.fshader
