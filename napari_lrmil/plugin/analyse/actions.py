"""What the dock's buttons do to viewer, session and disk; without buttons, so that scripts may call it too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.geometry import Mpp
from napari_lrmil.core.patching.regions import read_regions, write_regions
from napari_lrmil.plugin.analyse.export_jobs import ResultExportJob, ViewExportJob, explain_disk_errors
from napari_lrmil.plugin.analyse.result_text import ResultText
from napari_lrmil.plugin.viewer.layers import (
    EXCLUDED_EDGE,
    MAP_ROLES,
    REGION_EDGE,
    LayerTag,
    add_layers,
    build_region_layer,
    build_tissue_layer,
    get_tag,
    lrmil_layers,
    remove_layers,
)
from napari_lrmil.plugin.viewer.region_shapes import regions_from_shapes, shapes_from_regions
from napari_lrmil.plugin.viewer.split_view import CAPTION_PREFIX

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Labels, Shapes

    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.slides.slide import Pixels
    from napari_lrmil.core.visualize.view_export import ColourLegend
    from napari_lrmil.plugin.session.session import Session


class ViewerActions:
    """Carries out what a user wants of the chosen slide.

    Parameters
    ----------
    viewer
        Where slides are shown and regions drawn.
    session
        What is chosen and known.
    """

    def __init__(self, viewer: ViewerModel, session: Session) -> None:
        self._viewer, self._session = viewer, session
        self.saved_in = Path("predictions")  # as the command line has it where nothing was saved yet

    # ------------------------------------------------------------ regions

    def drawing(self) -> Shapes | None:
        """Return the layer on which the regions of the chosen slide are drawn; None where there is none."""
        return self._layer("drawn")

    def draw(self) -> Shapes:
        """Return the layer to draw on, made if need be, with the polygon tool in hand."""
        layer = self._paper()
        self._viewer.layers.selection.active = layer
        layer.mode = "add_polygon"
        return layer

    def _paper(self) -> Shapes:
        slide = self._session.opened_slide
        return (
            self.drawing() or add_layers(self._viewer, [build_region_layer(self._tag(), slide.width * slide.mpp.x)])[0]
        )

    def take_drawn(self) -> None:
        """Tell the session what is drawn."""
        layer = self.drawing()
        self._session.set_regions(regions_from_shapes(layer, self.mpp) if layer is not None else ())

    def mark_left_out(self) -> None:
        """Show in the drawing which regions are left out at present."""
        layer, out = self.drawing(), self._session.what_if.excluded
        if layer is not None and layer.nshapes:
            drawn = [regions_from_shapes(layer, self.mpp, [row]) for row in range(layer.nshapes)]
            layer.edge_color = [EXCLUDED_EDGE if its and its[0] in out else REGION_EDGE for its in drawn]

    def import_regions(self, path: Path) -> str | None:
        """Add the regions of a file to those drawn, and return a sentence about what was left out, if anything was.

        Raises
        ------
        LrmilError
            Where the file holds no regions.
        """
        found = read_regions(path, self._session.opened_slide.bounds)
        layer = self._paper()
        for corners, kind in shapes_from_regions(found.regions, self.mpp):
            layer.add(corners, shape_type=kind)
        self.take_drawn()
        return found.caution

    def export_regions(self, path: Path) -> None:
        """Write the drawn regions for QuPath."""
        with explain_disk_errors(path.parent):
            write_regions(path, self._session.regions, self._session.opened_slide.bounds)

    # ------------------------------------------------------------ tissue

    def editing(self) -> Labels | None:
        """Return the mask that is being edited; None where none is."""
        return self._layer("tissue")

    def edit_tissue(self) -> None:
        """Lay the tissue mask over the slide, with the brush in hand."""
        ground = self._session.tissue_grid
        if ground is None or self.editing() is not None:
            return
        [layer] = add_layers(self._viewer, [build_tissue_layer(ground, self._tag())])
        layer.mode, layer.brush_size, layer.selected_label = "paint", 12, 1

    def use_tissue(self) -> None:
        """Take the mask as it was painted, and put it away."""
        layer = self.editing()
        if layer is not None:
            self._session.edit_tissue(np.asarray(layer.data) > 0)
            remove_layers(self._viewer, [layer])

    def found_tissue(self) -> None:
        """Go back to the mask as it was found by colour."""
        layer = self.editing()
        if layer is not None:
            remove_layers(self._viewer, [layer])
        self._session.edit_tissue(None)

    # ------------------------------------------------------------ keep

    def answer_to_keep(self, out: Path) -> ResultExportJob:
        """Return the last answer, to be written below `out`.

        Raises
        ------
        LrmilError
            Where there is none yet.
        """
        from napari_lrmil.core.visualize.slide_report import ReportRequest

        session, prediction = self._session, self._prediction
        chosen = session.slide
        if chosen is None:
            raise LrmilError("no slide is open; drop one on the window")
        request = ReportRequest(self.command(out), self._model.card.hr_mpp)
        return ResultExportJob(prediction, chosen, session.open_slides, session.tissue_grid, request)

    def view_to_keep(self) -> ViewExportJob:
        """Return what the canvas shows now, to be written as a picture."""
        from napari_lrmil.plugin.viewer.navigation import um_per_unit

        pixels = _canvas(self._viewer)
        session, told = self._session, self._session.prediction
        um = um_per_unit(self._viewer) / self._viewer.scene.camera.zoom * self._viewer.canvas.size[1] / pixels.shape[1]
        title = session.slide.name if session.slide is not None else ""
        footer = f"{told.bundle} · {told.scope.text} · {ResultText(told).trust}" if told is not None else ""
        return ViewExportJob(pixels, um, _legend(self._viewer), title, footer)

    def command(self, out: Path | None = None) -> str:
        """Return the command line that gives the same numbers; the files that it names are those of `ResultExportJob`.

        Its folder is the one in which something was saved last, unless another is given.
        """
        from napari_lrmil.core.results.equivalent_command import predict_command

        prediction, session = self._prediction, self._session
        if session.bundle is None or session.slide is None:
            return ""
        out = out or self.saved_in
        folder, scope = out / prediction.slide, prediction.scope
        files = {name: folder / f"{name}.geojson" for name in scope.files}
        files |= {"tissue": folder / "tissue.png"} if scope.edited else {}
        return predict_command(
            prediction.path,
            bundle=session.bundle_name,
            out=out,
            device=prediction.device,
            runtime=prediction.student.runtime.name,
            mpp=session.slide.given_mpp,
            teacher=prediction.teacher_patches,
            files=files,
            report=True,
            reader=prediction.reader_option,
        )

    # ------------------------------------------------------------ the chosen slide

    @property
    def mpp(self) -> Mpp:
        """µm per level-0 pixel of the chosen slide."""
        return self._session.opened_slide.mpp

    @property
    def _prediction(self) -> Prediction:
        if self._session.prediction is None:
            raise LrmilError("nothing was analysed yet; press Run first")
        return self._session.prediction

    @property
    def _model(self) -> Bundle:
        if self._session.bundle is None:
            raise LrmilError("no model is chosen; choose one first")
        return self._session.bundle

    def _tag(self) -> LayerTag:
        chosen = self._session.slide
        if chosen is None:
            raise LrmilError("no slide is open; drop one on the window")
        layers = lrmil_layers(self._viewer, chosen.path, role="slide")
        tag = get_tag(layers[0]) if layers else None
        return tag or LayerTag("slide", chosen.path, chosen.mpp, chosen.given_mpp)

    def _layer(self, role: str) -> Labels | Shapes | None:
        chosen = self._session.slide
        return next(iter(lrmil_layers(self._viewer, chosen.path, role=role)), None) if chosen is not None else None


def _canvas(viewer: ViewerModel) -> Pixels:
    """Return what the canvas shows, without the overlays that the picture gets of its own."""
    overlays = viewer.canvas.overlays
    shown = [overlay for overlay in (overlays.scale_bar, overlays.text) if overlay.visible]
    bars = [layer.colorbar for layer in viewer.layers if getattr(layer, "colorbar", None) and layer.colorbar.visible]
    for one in (*shown, *bars):
        one.visible = False
    try:
        pixels: Pixels = np.ascontiguousarray(viewer.screenshot(canvas_only=True, flash=False)[..., :3])
    finally:
        for one in (*shown, *bars):
            one.visible = True
    return pixels


def _legend(viewer: ViewerModel) -> ColourLegend | None:
    """Return what the colours of the topmost visible map mean."""
    from napari_lrmil.core.visualize.view_export import ColourLegend

    for layer in reversed(viewer.layers):
        tag = get_tag(layer)
        if tag is not None and tag.role in (*MAP_ROLES, "evidence") and layer.visible:
            low, high = layer.contrast_limits
            label = viewer.canvas.overlays.text.text.replace("\n", " ").removeprefix(CAPTION_PREFIX)
            return ColourLegend(low, high, np.asarray(layer.colormap.colors), label)
    return None
