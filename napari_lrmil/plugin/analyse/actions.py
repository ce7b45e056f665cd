"""Actions behind the Analyse dock's buttons. No Qt, so scripts can call them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.geometry import Mpp
from napari_lrmil.core.patching.missing_tissue import MOST_SHARE
from napari_lrmil.core.patching.regions import read_regions, write_regions
from napari_lrmil.plugin.analyse.export_jobs import ResultExportJob, ViewExportJob, explain_disk_errors
from napari_lrmil.plugin.analyse.result_text import ResultText
from napari_lrmil.plugin.session.scope_text import scope_words
from napari_lrmil.plugin.viewer.layers import (
    EXCLUDED_EDGE,
    OUTLINE_PX,
    REGION_EDGE,
    LayerTag,
    add_layers,
    build_artefact_layer,
    build_region_layer,
    build_tissue_layer,
    get_tag,
    lrmil_layers,
    map_layers,
    remove_layers,
)
from napari_lrmil.plugin.viewer.maps.captions import CAPTION_PREFIX
from napari_lrmil.plugin.viewer.region_shapes import regions_from_shapes, shapes_from_regions

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Labels, Shapes

    from napari_lrmil.core.inference.prediction import Prediction
    from napari_lrmil.core.slides.slide import Pixels
    from napari_lrmil.core.visualize.view_export import ColourLegend
    from napari_lrmil.plugin.session.analyse_state import AnalyseState
    from napari_lrmil.plugin.session.open_slides import SlideChoice
    from napari_lrmil.plugin.session.session import Session

BRUSH_SIZE, TISSUE_LABEL = 12, 1  # diameter in pixels of the mask; value of tissue in it


class ViewerActions:
    """Actions on the chosen slide, its layers and its result.

    Parameters
    ----------
    viewer
        The viewer with the slide's layers; regions are drawn in it.
    session
        The choices and the last result.

    Attributes
    ----------
    last_save_folder
        Folder of the last export. The initial value is the default of the command line's ``--out``.
    """

    def __init__(self, viewer: ViewerModel, session: Session) -> None:
        self._viewer, self._session = viewer, session
        self.last_save_folder = Path("predictions")
        self._saved: Callable[[], Prediction | None] = lambda: None

    # ------------------------------------------------------------ regions

    def region_layer(self) -> Shapes | None:
        """Return the layer with the drawn regions of the chosen slide; None if there is none yet."""
        return self._find_layer("drawn")

    def start_drawing(self) -> Shapes:
        """Select the region layer and its polygon tool; add the layer if it is missing.

        Returns
        -------
        Shapes
            The region layer.

        Raises
        ------
        LrmilError
            If no slide is open.
        """
        layer = self._ensure_region_layer()
        self._viewer.layers.selection.active = layer
        layer.mode = "add_polygon"
        return layer

    def _ensure_region_layer(self) -> Shapes:
        layer = self.region_layer()
        if layer is None:
            slide = self._session.opened_slide
            side_um = max(slide.width * slide.mpp.x, slide.height * slide.mpp.y)
            [layer] = add_layers(self._viewer, [build_region_layer(self._slide_tag(), side_um)])
        return layer

    def sync_drawn_regions(self) -> None:
        """Copy the shapes of the region layer into the session."""
        layer = self.region_layer()
        regions = regions_from_shapes(layer, self.mpp, slide=self._find_layer("slide")) if layer is not None else ()
        self._session.set_regions(regions)

    def mark_excluded_regions(self) -> None:
        """Give excluded regions an edge colour of their own."""
        layer, excluded = self.region_layer(), self._session.what_if.excluded
        if layer is not None and layer.nshapes:
            slide = self._find_layer("slide")
            drawn = [regions_from_shapes(layer, self.mpp, [row], slide) for row in range(layer.nshapes)]
            layer.edge_color = [
                EXCLUDED_EDGE if regions and regions[0] in excluded else REGION_EDGE for regions in drawn
            ]

    def import_regions(self, path: Path) -> str | None:
        """Add the regions of an annotation file to the drawn ones.

        Parameters
        ----------
        path
            GeoJSON, or XML of ASAP or ImageScope.

        Returns
        -------
        str or None
            A warning about annotations that were left out, repaired or guessed; None without any.

        Raises
        ------
        LrmilError
            If the file cannot be read or has no regions.
        """
        region_file = read_regions(path, self._session.opened_slide.bounds)
        layer = self._ensure_region_layer()
        corners, shape_types = zip(*shapes_from_regions(region_file.regions, self.mpp), strict=True)
        layer.add(list(corners), shape_type=list(shape_types))  # at once: each call computes the whole layer anew
        self.sync_drawn_regions()
        self._session.add_region_warnings(region_file.warnings)
        return region_file.caution

    def export_regions(self, path: Path) -> None:
        """Write the drawn regions as GeoJSON in QuPath's coordinates.

        Raises
        ------
        LrmilError
            If the file cannot be written.
        """
        with explain_disk_errors(path.parent):
            write_regions(path, self._session.regions, self._session.opened_slide.bounds)

    # ------------------------------------------------------------ tissue mask

    def tissue_layer(self) -> Labels | None:
        """Return the labels layer in which the tissue mask is edited; None if it is not being edited."""
        return self._find_layer("tissue")

    def start_tissue_edit(self) -> None:
        """Add the tissue mask as a labels layer with the brush selected, unless it is being edited already."""
        tissue_grid = self._session.tissue_grid
        if tissue_grid is None or self.tissue_layer() is not None:
            return
        [layer] = add_layers(self._viewer, [build_tissue_layer(tissue_grid, self._slide_tag())])
        layer.brush_size = BRUSH_SIZE
        self.choose_tissue_tool("paint")

    def choose_tissue_tool(self, tool: str) -> None:
        """Choose brush or eraser of the tissue mask; nothing happens if the mask is not being edited.

        Parameters
        ----------
        tool
            ``paint`` adds tissue, ``erase`` removes it.
        """
        layer = self.tissue_layer()
        if layer is not None:
            self._viewer.layers.selection.active = layer  # napari draws on the active layer
            layer.visible = True
            # The brush paints the selected label, which the user may have set to 0 in napari's own controls.
            layer.selected_label, layer.mode = TISSUE_LABEL, tool

    def set_tissue_brush(self, diameter: int) -> None:
        """Set the diameter of brush and eraser in pixels of the tissue mask."""
        layer = self.tissue_layer()
        if layer is not None:
            layer.brush_size = diameter

    def apply_tissue_edit(self) -> None:
        """Pass the painted mask to the session and remove the labels layer."""
        layer = self.tissue_layer()
        if layer is not None:
            self._session.edit_tissue(np.asarray(layer.data) > 0)  # any label counts as tissue
            remove_layers(self._viewer, [layer])

    def reset_tissue(self) -> None:
        """Discard edits; the session goes back to the mask that segmentation found."""
        layer = self.tissue_layer()
        if layer is not None:
            remove_layers(self._viewer, [layer])
        self._session.edit_tissue(None)

    # ------------------------------------------------------------ artefacts

    @property
    def has_artefact_outlines(self) -> bool:
        """Whether the artefacts of the chosen slide are outlined on it."""
        return self._find_layer("artefacts") is not None

    def show_artefacts(self, is_shown: bool) -> None:
        """Outline the artefacts of the chosen slide on it, or remove the outlines."""
        tissue_grid, layer, viewer = self._session.tissue_grid, self._find_layer("artefacts"), self._viewer
        if not is_shown and layer is not None:
            remove_layers(viewer, [layer])
        elif is_shown and layer is None and tissue_grid is not None:
            active = viewer.layers.selection.active
            [layer] = add_layers(viewer, [build_artefact_layer(tissue_grid, self._slide_tag())])
            layer.contour = OUTLINE_PX
            viewer.layers.selection.active = active

    # ------------------------------------------------------------ exports

    def export_job(self, out: Path) -> ResultExportJob:
        """Return a job that writes the last result.

        Parameters
        ----------
        out
            Folder of all slides' results, for the command line in the report.

        Raises
        ------
        LrmilError
            If there is no result, model or slide.
        """
        from napari_lrmil.core.visualize.slide_report import ReportRequest

        state = self._session.resolve()
        prediction = _require_prediction(state)
        if state.bundle is None:
            raise LrmilError("no model is chosen; choose one first")
        if state.slide is None:
            raise LrmilError("no slide is open; drop one on the window")
        command = self.equivalent_command(out, full_paths=False, state=state)
        request = ReportRequest(command, state.bundle.card.hr_mpp)
        return ResultExportJob(prediction, state.slide, self._session.open_slides, state.tissue_grid, request)

    def view_export_job(self) -> ViewExportJob:
        """Return a job that writes the current canvas as a picture with legend and scale bar."""
        from napari_lrmil.plugin.viewer.navigation.camera import um_per_unit

        pixels = _grab_canvas(self._viewer)
        state = self._session.resolve()
        prediction = state.prediction
        # On high-DPI screens the screenshot has more pixels than the canvas has units.
        units_per_px = self._viewer.canvas.size[1] / pixels.shape[1] / self._viewer.scene.camera.zoom
        title = state.slide.name if state.slide is not None else ""
        footer = ""
        if prediction is not None:
            footer = f"{prediction.bundle} · {scope_words(prediction.scope)} · {ResultText(prediction).trust}"
        um_per_px = um_per_unit(self._viewer) * units_per_px
        return ViewExportJob(pixels, um_per_px, _find_legend(self._viewer), title, footer)

    def note_saved(self, folder: Path, prediction: Prediction) -> None:
        """Note in which folder all files of a result were written; the command line names files in it."""
        self.last_save_folder, self._saved = folder, weakref.ref(prediction)  # its maps may go

    def names_unsaved_files(self, prediction: Prediction | None) -> bool:
        """Return whether the command line of a result names files that are not saved yet."""
        if prediction is None or prediction is self._saved():
            return False
        return bool(prediction.scope.files) or prediction.scope.edited

    def equivalent_command(
        self, out: Path | None = None, *, full_paths: bool = True, state: AnalyseState | None = None
    ) -> str:
        """Return the command line that gives the same numbers, with the files of `ResultExportJob.write_all`.

        Parameters
        ----------
        out
            Value of ``--out``; None takes the folder of the last export.
        full_paths
            Whether absolute paths are written as they are, see `predict_command`.
        state
            State with the result; None takes the present one.

        Returns
        -------
        str
            The call for the shell of this system; empty if no slide or model is chosen.

        Raises
        ------
        LrmilError
            If there is no result.
        """
        from napari_lrmil.core.results.equivalent_command import predict_command

        state = state or self._session.resolve()
        prediction = _require_prediction(state)
        if state.bundle is None or state.slide is None:
            return ""
        out = out or self.last_save_folder
        folder, roi = out / prediction.slide, prediction.scope
        files = {name: folder / f"{name}.geojson" for name in roi.files}
        files |= {"tissue": folder / "tissue.png"} if roi.edited else {}
        return predict_command(
            prediction.path,
            bundle=state.choices.model,
            out=out,
            device=prediction.device,
            runtime=prediction.student.runtime.name,
            mpp=state.slide.given_mpp,
            teacher=prediction.teacher_patches,
            files=files,
            report=True,
            reader=prediction.reader_option,
            full_paths=full_paths,
            allow_missing=prediction.missing_tiles.tissue_share > MOST_SHARE,
            exclude_artefacts=prediction.artefacts is not None
            and prediction.artefacts.excluded
            and not state.bundle.card.tissue.exclude_artefacts,
        )

    # ------------------------------------------------------------ the chosen slide

    @property
    def mpp(self) -> Mpp:
        """µm per level-0 pixel of the chosen slide."""
        return self._session.opened_slide.mpp

    @property
    def _slide(self) -> SlideChoice:
        if self._session.slide is None:
            raise LrmilError("no slide is open; drop one on the window")
        return self._session.slide

    def _slide_tag(self) -> LayerTag:
        """Return the tag of the slide's own layer, or an equal one if the user has removed that layer."""
        slide = self._slide
        layers = lrmil_layers(self._viewer, slide.path, role="slide")
        tag = get_tag(layers[0]) if layers else None
        return tag or LayerTag("slide", slide.path, slide.mpp, slide.given_mpp)

    def _find_layer(self, role: str) -> Labels | Shapes | None:
        slide = self._session.slide
        return next(iter(lrmil_layers(self._viewer, slide.path, role=role)), None) if slide is not None else None


def _require_prediction(state: AnalyseState) -> Prediction:
    if state.prediction is None:
        raise LrmilError("there is no result yet; press Run first")
    return state.prediction


def _grab_canvas(viewer: ViewerModel) -> Pixels:
    """Return the canvas as (height, width, 3) pixels, without the overlays that the exported picture draws itself."""
    overlays = viewer.canvas.overlays
    colour_bars = [layer.colorbar for layer in viewer.layers if getattr(layer, "colorbar", None)]
    visible = [overlay for overlay in (overlays.scale_bar, overlays.text, *colour_bars) if overlay.visible]
    for overlay in visible:
        overlay.visible = False
    try:
        pixels: Pixels = np.ascontiguousarray(viewer.screenshot(canvas_only=True, flash=False)[..., :3])
    finally:
        for overlay in visible:
            overlay.visible = True
    return pixels


def _find_legend(viewer: ViewerModel) -> ColourLegend | None:
    """Return limits, colours and label of the topmost visible map; None if no map is visible.

    The caption of two views speaks of the evidence first, if there is any.
    """
    from napari_lrmil.core.visualize.view_export import ColourLegend

    shown = [layer for layer in (*map_layers(viewer), *lrmil_layers(viewer, role="evidence")) if layer.visible]
    if not shown:
        return None
    low, high = shown[-1].contrast_limits
    label = viewer.canvas.overlays.text.text.replace("\n", " ").removeprefix(CAPTION_PREFIX)
    return ColourLegend(low, high, np.asarray(shown[-1].colormap.colors), label)
