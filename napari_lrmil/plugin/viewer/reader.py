"""Slides dropped on the window become layers; a DICOM series, which is many files, becomes one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_lrmil.core.slides.openslide_handle import dicom_files
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.plugin.viewer.mpp_prompt import AskMpp, MppAnswer, resolve_mpp
from napari_lrmil.plugin.viewer.screen_pyramid import DEFAULT_CACHE_BYTES

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_lrmil.plugin.viewer.layers import LayerData

Paths = str | Path | Sequence[str | Path]
SERIES_PROPERTY = "dicom.SeriesInstanceUID"
NO_LAYERS: list[Any] = [(None,)]  # how a reader tells napari that it did well and made no layer


def get_reader(path: Paths) -> Callable[[Paths], list[LayerData]] | None:
    """Return a reader where every path is a slide that OpenSlide knows; None leaves the file to other readers."""
    return read_dropped_slides if all(is_slide(p) for p in _paths(path)) else None


def read_dropped_slides(path: Paths) -> list[LayerData]:
    """Return the layers of slides for the window that is open: it asks for what a file does not say.

    napari hands over dropped files one by one, so files of a DICOM series that is already shown give no layer.

    Raises
    ------
    SlideError
        Where a slide cannot be opened.
    ResolutionError
        Where no window is open that could ask how large a pixel is.
    """
    from napari import current_viewer

    viewer = current_viewer()
    shown = _series_shown(viewer) if viewer is not None else frozenset()
    cache = SettingsStore().load_settings().settings.tile_cache_mb << 20
    made = read_slides(path, ask=ask_mpp_with_estimate if viewer is not None else None, shown=shown, cache_bytes=cache)
    return made or NO_LAYERS


def read_slides(
    path: Paths,
    mpp: float | None = None,
    *,
    ask: AskMpp | None = None,
    memory: SettingsStore | None = None,
    shown: Iterable[str] = (),
    cache_bytes: int = DEFAULT_CACHE_BYTES,
) -> list[LayerData]:
    """Return the layers of one or more slides; pixels are read when they are looked at.

    Parameters
    ----------
    path
        Slides; a folder of DICOM files holds one slide for each series.
    mpp
        µm per level-0 pixel, believed above what the files say.
    ask
        Asks for the resolution that a file lacks. A slide for which there is no answer is left out, with a sentence.
    memory
        What was answered before; by default the user's.
    shown
        DICOM series that are open already and left out.
    cache_bytes
        The most that decoded tiles may take, for each slide.

    Raises
    ------
    SlideError
        Where a slide cannot be opened.
    ResolutionError
        Where neither the file nor `mpp` says how large a pixel is, and nobody can be asked.
    """
    found = [_known(one, mpp, ask, memory) for one in one_path_per_slide(_paths(path), shown)]
    return [layer for slide in found if slide is not None for layer in _layers(slide, cache_bytes)]


def _known(path: Path, mpp: float | None, ask: AskMpp | None, memory: SettingsStore | None) -> Slide | None:
    """Return the open slide with a resolution, if anyone says it; None where the user would not."""
    slide = Slide(path, mpp=mpp)
    if slide.has_mpp or ask is None:
        return slide
    try:
        answered = resolve_mpp(slide, ask, memory or SettingsStore())
    finally:
        slide.close()
    if answered is None:
        _tell(f"{path.name} was not opened: how large its pixels are is not known.")
        return None
    return Slide(path, mpp=answered)


def _layers(slide: Slide, cache_bytes: int) -> list[LayerData]:
    from napari_lrmil.plugin.viewer.layers import build_slide_layers

    try:
        return build_slide_layers(slide, underlay=slices_asynchronously(), cache_bytes=cache_bytes)
    except BaseException:
        slide.close()
        raise


def slices_asynchronously() -> bool:
    """Whether napari loads tiles in the background."""
    from napari.settings import get_settings

    return bool(get_settings().experimental.async_)


def ask_mpp_with_estimate(slide: Slide) -> MppAnswer | None:
    """Ask for the resolution of a slide in a dialog, which offers what its nuclei say."""
    from napari_lrmil.core.slides.mpp_from_nuclei import estimate_mpp
    from napari_lrmil.plugin.viewer.mpp_dialog import ask_mpp as ask

    return ask(slide, partial(estimate_mpp, slide))


def _tell(sentence: str) -> None:
    from napari.utils.notifications import show_info

    show_info(sentence)


def _paths(path: Paths) -> list[Path]:
    return [Path(path)] if isinstance(path, str | Path) else [Path(p) for p in path]


# ---------------------------------------------------------------- one slide per DICOM series


def one_path_per_slide(paths: Iterable[Path], shown: Iterable[str] = ()) -> list[Path]:
    """Return one path for each slide, in the order in which they came.

    Files of one DICOM series are one slide, whichever of them is opened; a folder with several series gives one file
    of each.

    Parameters
    ----------
    paths
        Files and folders.
    shown
        Series to leave out.
    """
    seen, kept = set(shown), []
    for path in paths:
        for one, series in _slides_at(path):
            if series is None or series not in seen:
                kept.append(one)
            if series is not None:
                seen.add(series)
    return kept


def _slides_at(path: Path) -> list[tuple[Path, str | None]]:
    """Return what to open at a path, each with its DICOM series if it has one."""
    if not path.is_dir():
        return [(path, _series(path))]
    first: dict[str, Path] = {}
    for file in _dicom_files(path):
        first.setdefault(_series(file) or str(file), file)
    if len(first) > 1:
        return [(file, series) for series, file in first.items()]
    return [(path, next(iter(first), None))]  # by its folder, which has a name that a person gave it


def _series(file: Path) -> str | None:
    """Return the DICOM series of a file; None for other formats, and for broken files, of which `Slide` will tell."""
    import openslide

    try:
        if openslide.OpenSlide.detect_format(file) != "dicom":
            return None
        with openslide.OpenSlide(file) as handle:
            found: str | None = handle.properties.get(SERIES_PROPERTY)
            return found
    except (OSError, openslide.OpenSlideError):
        return None


def _series_shown(viewer: ViewerModel) -> frozenset[str]:
    from napari_lrmil.plugin.viewer.layers import get_screen_slide, lrmil_layers

    screens = [get_screen_slide(layer) for layer in lrmil_layers(viewer, role="slide")]
    return frozenset(
        s.slide.properties[SERIES_PROPERTY] for s in screens if s is not None and SERIES_PROPERTY in s.slide.properties
    )


# ---------------------------------------------------------------- what is a slide


def is_slide(path: Path) -> bool:
    """Whether a file, or a folder of DICOM files, is a slide; looks at the files' heads only."""
    if path.is_dir():
        return bool(_dicom_files(path))
    return _is_slide_file(path)


def _dicom_files(folder: Path) -> list[Path]:
    return [file for file in dicom_files(folder) if _is_slide_file(file)]


def _is_slide_file(path: Path) -> bool:
    import openslide

    try:
        vendor = openslide.OpenSlide.detect_format(path)
    except (OSError, openslide.OpenSlideError):
        return False
    return vendor is not None and (vendor != "generic-tiff" or _is_colour(path))


def _is_colour(file: Path) -> bool:
    """Whether a tiled TIFF holds 8-bit RGB; OpenSlide would also take the grey stacks of a microscope."""
    import tifffile

    try:
        with tifffile.TiffFile(file) as tiff:
            page = tiff.pages.first
            return bool(page.dtype == "uint8" and page.samplesperpixel >= 3)
    except (tifffile.TiffFileError, OSError, ValueError):
        return False
