"""napari reader for slides: files and folders become layers; a DICOM series of many files becomes one slide."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.slides.dicom_headers import DICOM, dicom_series
from napari_lrmil.core.slides.ome_metadata import is_ome_zarr
from napari_lrmil.core.slides.openslide_handle import detect_vendor
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.slides.slide_files import SLIDE_ENDINGS, dicom_in
from napari_lrmil.core.slides.tiff_layout import UnsupportedTiffError, find_layout
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.plugin.viewer.opening.mpp_prompt import AskMpp, MppAnswer, resolve_mpp
from napari_lrmil.plugin.viewer.screen_pyramid import DEFAULT_CACHE_BYTES

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image

    from napari_lrmil.plugin.viewer.layers import LayerData

Paths = str | Path | Sequence[str | Path]
SERIES_PROPERTY = "dicom.SeriesInstanceUID"
ENDINGS_OF_SLIDES_ALONE = frozenset(SLIDE_ENDINGS) - {".tif", ".tiff", DICOM}
UID = re.compile(r"[0-9.]{20,64}")  # name of a file that an archive has named
NO_LAYERS: list[Any] = [(None,)]  # tells napari that the reader succeeded without a layer; an empty list means failure


def get_reader(path: Paths) -> Callable[[Paths], list[LayerData]] | None:
    """Return the reader if every path is a slide that OpenSlide can open; None leaves the files to other readers."""
    return read_dropped_slides if all(is_slide(p) for p in _as_paths(path)) else None


def read_dropped_slides(path: Paths) -> list[LayerData]:
    """Return the layers of slides for the current window, which asks for a resolution if the file has none.

    napari passes dropped files one by one. Files of a DICOM series that is already shown give no layer.

    Raises
    ------
    SlideError
        If a slide cannot be opened.
    ResolutionError
        If a file states no resolution and there is no window that could ask for it.
    """
    from napari import current_viewer

    viewer = current_viewer()
    if viewer is not None:
        from napari_lrmil.plugin.guards import guard_viewer

        guard_viewer(viewer)  # a slide may be opened without a dock
    shown = _shown_series(viewer) if viewer is not None else frozenset()
    cache = SettingsStore().load_settings().settings.tile_cache_mb << 20
    ask = ask_mpp_with_estimate if viewer is not None else None
    return read_slide_layers(path, ask=ask, shown=shown, cache_bytes=cache) or NO_LAYERS


def read_slide_layers(
    path: Paths,
    mpp: float | None = None,
    *,
    ask: AskMpp | None = None,
    memory: SettingsStore | None = None,
    shown: Iterable[str] = (),
    cache_bytes: int = DEFAULT_CACHE_BYTES,
) -> list[LayerData]:
    """Return the layers of one or more slides; their pixels are read when they are displayed.

    Parameters
    ----------
    path
        Slides; a folder of DICOM files contains one slide per series.
    mpp
        µm per level-0 pixel, which overrides the files.
    ask
        Asks for the resolution of a file that states none. If the user cancels, the slide is left out with a
        notification. None raises an error instead.
    memory
        Store of earlier answers; by default the user's.
    shown
        DICOM series that are open already; they are left out.
    cache_bytes
        Upper bound of the decoded tiles in memory, for each slide.

    Raises
    ------
    SlideError
        If a slide cannot be opened.
    ResolutionError
        If neither the file nor `mpp` states a resolution, and `ask` is None.
    """
    slides = [_open_with_mpp(file, mpp, ask, memory) for file in one_path_per_slide(_as_paths(path), shown)]
    return [layer for slide in slides if slide is not None for layer in _build_layers(slide, cache_bytes)]


def _open_with_mpp(path: Path, mpp: float | None, ask: AskMpp | None, memory: SettingsStore | None) -> Slide | None:
    """Return the open slide, with a resolution if anyone states it; None if the user cancels."""
    slide = Slide(path, mpp=mpp)
    if slide.has_mpp or ask is None:  # without `ask`, building the layers raises ResolutionError
        return slide
    try:
        given_mpp = resolve_mpp(slide, ask, memory or SettingsStore())
    finally:
        slide.close()
    if given_mpp is None:
        _notify(f"{path.name} was not opened: how large its pixels are is not known.")
        return None
    return Slide(path, mpp=given_mpp)


def _build_layers(slide: Slide, cache_bytes: int) -> list[LayerData]:
    from napari_lrmil.plugin.viewer.layers import build_slide_layers

    try:
        return build_slide_layers(slide, underlay=slices_asynchronously(), cache_bytes=cache_bytes)
    except BaseException:  # no layer owns the slide yet, so nobody else would close it
        slide.close()
        raise


def slices_asynchronously() -> bool:
    """Return whether napari loads tiles in the background."""
    from napari.settings import get_settings

    return bool(get_settings().experimental.async_)


def ask_mpp_with_estimate(slide: Slide) -> MppAnswer | None:
    """Ask for the resolution of a slide in a dialog that also offers an estimate from nuclear size."""
    from napari_lrmil.core.slides.mpp_from_nuclei import estimate_mpp
    from napari_lrmil.plugin.viewer.opening.mpp_dialog import ask_mpp

    return ask_mpp(slide, partial(estimate_mpp, slide))


def _notify(sentence: str) -> None:
    from napari.utils.notifications import show_info

    show_info(sentence)


def _as_paths(path: Paths) -> list[Path]:
    return [Path(path)] if isinstance(path, str | Path) else [Path(p) for p in path]


# ---------------------------------------------------------------- one slide per DICOM series


def one_path_per_slide(paths: Iterable[Path], shown: Iterable[str] = ()) -> list[Path]:
    """Return one path per slide, in the given order.

    All files of a DICOM series are one slide, whichever of them is opened. A folder with several series gives one
    file of each.

    Parameters
    ----------
    paths
        Files and folders.
    shown
        Series to leave out.
    """
    seen, selected = set(shown), []
    for path in paths:
        for slide_path, series in _slides_in(path):
            if series is None or series not in seen:
                selected.append(slide_path)
            if series is not None:
                seen.add(series)
    return selected


def _slides_in(path: Path) -> list[tuple[Path, str | None]]:
    """Return what to open at a path, each with its DICOM series if it has one."""
    if not path.is_dir():
        series = dicom_series(path)
        if series is not None and UID.fullmatch(path.stem) and list(dicom_in(path.parent).slides) == [series]:
            path = path.parent  # so that the slide has the name that a person chose
        return [(path, series)]
    series_files = dicom_in(path).slides
    if len(series_files) > 1:
        return [(file, series) for series, file in series_files.items()]
    return [(path, next(iter(series_files), None))]  # the folder, because its name was chosen by a person


def find_open_slide(viewer: ViewerModel, path: Path) -> Image | None:
    """Return the layer that shows a slide which the user opens again; None if a slide at this path is not open."""
    from napari_lrmil.plugin.viewer.layers import get_screen_slide, get_tag, lrmil_layers

    by_place: dict[Path | str, Image] = {}
    for layer in lrmil_layers(viewer, role="slide", side="student"):
        tag, screen = get_tag(layer), get_screen_slide(layer)
        if tag is not None and screen is not None:
            by_place[tag.path.resolve()] = layer
            by_place[screen.slide.properties.get(SERIES_PROPERTY, "")] = layer
    slides = [(slide_path.resolve(), series) for slide_path, series in _slides_in(path)]
    layers = [by_place.get(series or slide_path) or by_place.get(slide_path) for slide_path, series in slides]
    return layers[0] if layers and all(layers) else None


def _shown_series(viewer: ViewerModel) -> frozenset[str]:
    from napari_lrmil.plugin.viewer.layers import get_screen_slide, lrmil_layers

    screens = [get_screen_slide(layer) for layer in lrmil_layers(viewer, role="slide")]
    properties = [screen.slide.properties for screen in screens if screen is not None]
    return frozenset(values[SERIES_PROPERTY] for values in properties if SERIES_PROPERTY in values)


# ---------------------------------------------------------------- recognise slides


def is_slide(path: Path) -> bool:
    """Return whether a file, or a folder of DICOM files or of OME-Zarr, is a slide; only the headers are read."""
    if path.is_dir():
        return is_ome_zarr(path) or bool(dicom_in(path).slides)
    if path.is_file() and path.suffix.lower() in ENDINGS_OF_SLIDES_ALONE:
        return True  # if it is broken, the reader says so
    return path.is_file() and _is_slide_file(path)  # reading a pipe would wait for whoever writes to it


def _is_slide_file(path: Path) -> bool:
    try:
        vendor = detect_vendor(path)
    except SlideError:
        return True  # the reader says why it cannot be opened
    except OSError:
        return False
    # OpenSlide's generic reader takes any tiled TIFF; the readers of vendors' formats check theirs.
    return vendor is not None and (vendor != "generic-tiff" or _is_colour(path))


def _is_colour(file: Path) -> bool:
    """Return whether a tiled TIFF holds colours; OpenSlide would also accept greyscale stacks of a microscope."""
    import tifffile

    try:
        with tifffile.TiffFile(file, _multifile=False) as tiff:
            layout = find_layout(tiff)
            return len(layout.levels[0]) == 3 or layout.base.samplesperpixel >= 3
    except (tifffile.TiffFileError, UnsupportedTiffError, OSError, ValueError):
        return False
