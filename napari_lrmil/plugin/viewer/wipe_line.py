"""Line between the maps of student and teacher in the wipe view.

The shader of the student's map draws it, on the last pixels of the screen before the wipe. It is no layer: nobody can
select, delete or save it, it is hidden with its map and turns with it, and it costs no time when slides are paged.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from napari_lrmil.plugin.viewer.attention_layers import count_columns, count_columns_left
from napari_lrmil.plugin.viewer.layers import lrmil_layers
from napari_lrmil.plugin.viewer.map_clipping import find_node

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.plugin.viewer.attention_layers import CompareMode

NOWHERE = -1.0  # column of a line that is not drawn
KEEP_POSITION = "void keep_position() { $position = gl_Position; }"
# Light between dark: seen on glass, on tissue, and on every colour of attention.
DRAW_LINE = """
void draw_line() {
    float column = $to_pixels($position).x;
    float per_px = length(vec2(dFdx(column), dFdy(column))) * $px;
    float px = ($edge - column) / per_px;
    if ($edge > 0.0 && px >= 0.0 && px < 4.0) {
        float light = px >= 1.0 && px < 3.0 ? 1.0 : 0.1;
        gl_FragColor = vec4(light, light, light, 1.0);
    }
}
"""
AFTER_OPACITY = 8  # position among the parts of a shader that change a pixel's colour; picking comes last

_lines: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # visual of a map -> function that moves its line


def draw_wipe_line(viewer: ViewerModel, path: Path, prediction: Prediction, compare: CompareMode) -> None:
    """Draw the line where the wipe is, or remove it if the view is another one or one map fills the slide.

    Parameters
    ----------
    viewer
        The viewer; without a window nothing is drawn.
    path
        File of the slide.
    prediction, compare
        The prediction, and the arrangement of its maps.
    """
    is_wipe = prediction.teacher is not None and compare.view == "wipe"
    left = count_columns_left(prediction, compare) if is_wipe else 0
    column = float(left) if 0 < left < count_columns(prediction) else NOWHERE
    for layer in lrmil_layers(viewer, path, role="attention", side="student"):
        node = find_node(viewer, layer)
        if node is not None and (column != NOWHERE or node in _lines):
            _move_line(node, column)


def _move_line(node: Any, column: float) -> None:
    if node not in _lines:
        _lines[node] = _attach_line(node)
    line = _lines[node]
    line["edge"], line["px"] = column, float(node.canvas.pixel_scale)
    node.update()


def _attach_line(node: Any) -> Any:
    """Add the line to the shader of an image, and return the function of the shader that has its place."""
    from vispy.visuals.filters.base_filter import Filter  # type: ignore[import-untyped]
    from vispy.visuals.shaders import Varying  # type: ignore[import-untyped]

    line = Filter(vcode=KEEP_POSITION, vpos=1, fcode=DRAW_LINE, fpos=AFTER_OPACITY)
    position = Varying("wipe_position", "vec4")
    line.vshader["position"] = line.fshader["position"] = position
    line.fshader["to_pixels"] = node.get_transform("render", "visual")
    line.fshader["edge"] = NOWHERE
    line.fshader["px"] = 1.0
    node.attach(line)
    return line.fshader
