"""Line between the maps of student and teacher in the wipe view.

The shader of the student's map draws it, on the last pixels of the screen before the wipe. It is no layer: nobody can
select, delete or save it, it is hidden with its map and turns with it, and it costs no time when slides are paged.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil.plugin.viewer.layers import lrmil_layers
from napari_lrmil.plugin.viewer.maps.attention_layers import count_columns, count_columns_left
from napari_lrmil.plugin.viewer.maps.image_shader import add_part, find_part, find_visual

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.plugin.viewer.maps.attention_layers import CompareMode

NOWHERE = -1.0  # column of a line that is not drawn
# Light between dark: seen on glass, on tissue, and on every colour of attention. Distances from the wipe are often
# whole or half pixels; the third of a pixel keeps them off the bounds, where rounding would change the line's width.
DRAW_LINE = """
void draw_line() {
    float column = $to_pixels($position).x;
    float per_px = length(vec2(dFdx(column), dFdy(column))) * $px;
    float px = ($edge - column) / per_px - 1.0 / 3.0;
    if ($edge > 0.0 && px >= 0.0 && px < 4.0) {
        float light = px >= 1.0 && px < 3.0 ? 1.0 : 0.1;
        gl_FragColor = vec4(light, light, light, 1.0);
    }
}
"""
AFTER_OPACITY = 8  # position among the parts of a shader that change a pixel's colour; picking comes last


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
        visual = find_visual(viewer, layer)
        if visual is not None and (column != NOWHERE or find_part(visual, DRAW_LINE) is not None):
            line = add_part(visual, DRAW_LINE, fpos=AFTER_OPACITY)
            canvas = visual.canvas  # None while the visual is not on it
            line["edge"], line["px"] = column, float(canvas.pixel_scale) if canvas is not None else 1.0
            visual.update()
