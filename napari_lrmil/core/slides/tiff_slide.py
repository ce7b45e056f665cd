"""Reader of TIFF and OME-TIFF slides through `tifffile`, for files that OpenSlide cannot open or reads wrongly."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.geometry import Level
from napari_lrmil.core.slides.byte_lru import ByteLru
from napari_lrmil.core.slides.checked_handle import checked
from napari_lrmil.core.slides.missing_tiles import TileMap, TileTable
from napari_lrmil.core.slides.openslide_handle import (
    READER,
    READER_REASON,
    READER_WARNINGS,
    TIFFFILE,
    Handle,
)
from napari_lrmil.core.slides.pixel_source import UPRIGHT, PixelSourceHandle, Rgba, paste
from napari_lrmil.core.slides.resolution import OME_SIZE
from napari_lrmil.core.slides.tiff_layout import (
    TiffLayout,
    UnsupportedTiffError,
    find_layout,
    is_planar,
    require_complete,
    tile_size,
)
from napari_lrmil.core.slides.tiff_structure import MAGIC

if TYPE_CHECKING:
    from tifffile import TiffFile

TILE_BYTES = 64 * 2**20  # of decoded tiles of one slide
RANGE_PIXELS = 4_000_000  # a coarsest level up to this size is read whole to find the range of 16-bit samples
CAMERA_BITS = (8, 10, 12, 14, 16)
_ICC, _UNITS = 34675, {2: "inch", 3: "centimeter"}
_ASSOCIATED, _UNASSOCIATED = 1, 2  # TIFF codes of extra samples


def is_tiff(path: Path) -> bool:
    """Return whether a file begins as a TIFF or BigTIFF does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC[0])) in MAGIC


def is_stored_upright(path: Path) -> bool:
    """Return whether the first page of a TIFF needs no turning."""
    import tifffile

    with tifffile.TiffFile(path, _multifile=False) as file:
        tag = file.pages.first.tags.get("Orientation")
        return tag is None or tag.value not in range(2, 9)


def open_tiff(path: Path, openslide: Handle | None = None) -> Handle:
    """Return a handle of our own, or `openslide` if OpenSlide reads this file rightly.

    Parameters
    ----------
    path
        The file.
    openslide
        OpenSlide's handle, closed if it is not returned; None if OpenSlide cannot open the file.

    Raises
    ------
    SlideError
        If the file is no brightfield slide, or its format cannot be read.
    """
    import tifffile

    try:
        file = tifffile.TiffFile(path, _multifile=False)
    except Exception:  # tifffile raises many kinds
        if openslide is not None:
            return openslide
        raise
    try:
        layout = find_layout(file)
        reason = _why_not_openslide(file, layout, openslide)
        if reason is None and openslide is not None:
            pages = [level[0].keyframe for level in layout.levels]
            file.close()
            return checked(openslide, path, pages)
        require_complete(file, layout)
    except UnsupportedTiffError as error:
        is_ome = file.is_ome
        file.close()
        # OpenSlide would take any channel of an OME-TIFF for a grey slide.
        if openslide is not None and error.is_for_openslide and not is_ome:
            return openslide
        raise SlideError(path, f"not a slide that can be read: {error}") from error
    source = TiffSource(file, layout)
    properties = _properties(source, reason or "OpenSlide cannot open the file", openslide)
    icc = source.layout.base.tags.get(_ICC)
    if openslide is not None:
        openslide.close()
    return PixelSourceHandle(source, properties, source.layout.orientation, None if icc is None else bytes(icc.value))


def _why_not_openslide(file: TiffFile, layout: TiffLayout, openslide: Handle | None) -> str | None:
    if openslide is None:
        return None
    reason, bits = layout.why_not_openslide(len(openslide.level_dimensions)), layout.base.bitspersample
    if reason is None and bits > 8:
        require_complete(file, layout)  # tiles are read to find the depth
        depth = TiffSource(file, layout).depth
        return f"its samples have {depth} bits, stored in {bits}" if depth < bits else None
    return reason


class TiffSource:
    """Pixels of an open TIFF as RGBA. Reads are thread-safe.

    A tile without bytes is transparent, as OpenSlide shows it.

    Attributes
    ----------
    layout
        Where the pixels are.
    depth
        Bits of the samples that are in use: 12 if samples of 16 bits reach 4095 at most.
    """

    def __init__(self, file: TiffFile, layout: TiffLayout) -> None:
        self.layout = layout
        self._file = file
        self._lock = threading.Lock()
        self._tiles: ByteLru[tuple[int, int], Rgba] = ByteLru(TILE_BYTES)
        self._colours = _colour_map(layout.base)
        self.depth = int(layout.base.bitspersample)
        if self.depth == 16:
            self.depth = self._find_depth()

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each level, finest first."""
        return self.layout.sizes

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Rgba:
        """Return a window, transparent outside the level."""
        out = np.zeros((height, width, 4), np.uint8)
        across, down = self.sizes[level]
        side = tile_size(self.layout.levels[level][0].keyframe)
        columns = -(-across // side[0])
        right, bottom = min(x + width, across), min(y + height, down)
        for row in range(max(0, y) // side[1], -(-bottom // side[1])):
            for column in range(max(0, x) // side[0], -(-right // side[0])):
                left, top = column * side[0], row * side[1]
                tile = self._tile(level, row * columns + column)
                paste(out, x, y, tile[: down - top, : across - left], left, top)  # without the tile's padding
        return out

    def missing_tiles(self, level: Level, orientation: int) -> TileMap | None:
        """Return the tiles of an upright level without bytes; None if all have some."""
        pages = self.layout.levels[level.index]
        offsets = [offset for page in pages for offset in page.dataoffsets]
        counts = [count for page in pages for count in page.databytecounts]
        return TileTable(tile_size(pages[0].keyframe), offsets, counts).missing(level, orientation)

    def _tile(self, level: int, index: int) -> Rgba:
        tile = self._tiles.get((level, index))
        if tile is None:
            tile = self._to_rgba(level, index)
            self._tiles.put((level, index), tile)
        return tile

    def _to_rgba(self, level: int, index: int) -> Rgba:
        samples = self._samples(level, index)
        width, height = tile_size(self.layout.levels[level][0].keyframe)
        rgba = np.zeros((height, width, 4), np.uint8)
        if samples is not None:
            values = self._to_bytes(samples)
            part = rgba[: values.shape[0], : values.shape[1]]
            part[..., :3] = _rgb(values, self.layout.base, self._colours)
            part[..., 3] = _opacity(values, self.layout.base)
        return rgba

    def _samples(self, level: int, index: int) -> NDArray[Any] | None:
        """Return a tile as it is stored, (height, width, samples), or None if the file has no bytes for it."""
        pages = self.layout.levels[level]
        page = pages[0].keyframe
        per_plane = len(pages[0].dataoffsets) // page.samplesperpixel
        numbers = [index + per_plane * i for i in range(page.samplesperpixel)] if is_planar(page) else [index]
        planes = [self._decode(plane, number) for plane in pages for number in numbers]
        present = [plane for plane in planes if plane is not None]
        if not present:
            return None
        if len(present) < len(planes):
            raise ValueError(f"tile {index} of level {level} lacks one of its colours")
        joined: NDArray[Any] = present[0] if len(present) == 1 else np.concatenate(present, axis=2)
        return joined

    def _decode(self, page: Any, number: int) -> NDArray[Any] | None:
        offset, count = page.dataoffsets[number], page.databytecounts[number]
        if count == 0 or offset == 0:
            return None
        with self._lock:
            self._file.filehandle.seek(offset)
            data = self._file.filehandle.read(count)
        keyframe = page.keyframe
        samples, _, shape = keyframe.decode(
            data, number, jpegtables=keyframe.jpegtables, jpegheader=keyframe.jpegheader
        )
        if samples is None:
            raise ValueError(f"tile {number} does not decode")
        decoded: NDArray[Any] = samples[0, : shape[1], : shape[2]]
        return decoded

    def _to_bytes(self, samples: NDArray[Any]) -> NDArray[Any]:
        """Return 8-bit samples. Palette indices stay as they are."""
        if samples.dtype == np.uint8 or self._colours is not None:
            return samples
        if self.depth == 16:
            as_libtiff = (samples.astype(np.uint32) + 128) // 257  # the rounding of libtiff, and so of OpenSlide
            return as_libtiff.astype(np.uint8)
        top = 2**self.depth - 1
        scaled: NDArray[np.uint32] = (samples.astype(np.uint32) * 255 + top // 2) // top
        return np.minimum(scaled, 255).astype(np.uint8)

    def _find_depth(self) -> int:
        """Return the bits of a camera that hold the largest sample of the coarsest level."""
        level = len(self.sizes) - 1
        page = self.layout.levels[level][0]
        count = len(page.dataoffsets) // (page.keyframe.samplesperpixel if is_planar(page.keyframe) else 1)
        width, height = tile_size(page.keyframe)
        step = max(1, count * width * height // RANGE_PIXELS)
        tiles = (self._samples(level, index) for index in range(0, count, step))
        largest = max((int(tile.max()) for tile in tiles if tile is not None), default=2**16 - 1)
        return next(bits for bits in CAMERA_BITS if largest < 2**bits)

    def close(self) -> None:
        """Close the file and free the cache."""
        with self._lock:
            self._file.close()
        self._tiles.clear()


# ---------------------------------------------------------------- colours


def _colour_map(page: Any) -> NDArray[np.uint8] | None:
    """Return the (entries, 3) palette as bytes; None if the page has none."""
    if page.colormap is None or page.photometric != 3:
        return None
    table = np.asarray(page.colormap).T.astype(np.uint32)
    if table.max(initial=0) < 256:  # some writers store bytes where TIFF asks for 16 bits
        return table.astype(np.uint8)
    return (table >> 8).astype(np.uint8)


def _rgb(values: NDArray[Any], page: Any, colours: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """Return values that fit (height, width, 3)."""
    if colours is not None:
        mapped: NDArray[np.uint8] = colours[values[..., 0].clip(0, len(colours) - 1)]
        return mapped
    if values.shape[2] == 1:
        return 255 - values if page.photometric == 0 else values
    rgb = values[..., :3]
    if _extra(page) != _ASSOCIATED:
        return rgb
    alpha = values[..., 3:].astype(np.uint32)
    whole = (rgb.astype(np.uint32) * 255 + alpha // 2) // np.maximum(alpha, 1)
    return whole.clip(0, 255).astype(np.uint8)


def _opacity(values: NDArray[Any], page: Any) -> NDArray[np.uint8] | int:
    """Return the alpha samples. A fourth sample of no stated kind is no opacity."""
    return values[..., 3] if _extra(page) in (_ASSOCIATED, _UNASSOCIATED) else 255


def _extra(page: Any) -> int | None:
    return int(page.extrasamples[0]) if page.extrasamples else None


# ---------------------------------------------------------------- properties


def _properties(source: TiffSource, reason: str, openslide: Handle | None) -> dict[str, str]:
    """Return OpenSlide's properties where it has them, the tags, and what the reader has to say."""
    layout, base = source.layout, source.layout.base
    description = base.description or ""
    properties = {
        **({} if openslide is None else dict(openslide.properties)),
        "openslide.vendor": "ome-tiff" if layout.is_ome else "tiff",
        "openslide.comment": description,
        "tiff.ImageDescription": description,
        **_resolution_tags(base, is_turned=layout.orientation >= 5),
        READER: TIFFFILE,
        READER_REASON: reason,
        READER_WARNINGS: "\n".join(_warnings(source)),
    }
    for name in ("openslide.mpp-x", "openslide.mpp-y"):
        properties.pop(name, None)  # OpenSlide's own are of the same tags, of its own idea of the slide
    if layout.ome is not None and layout.ome.um is not None:
        sizes = layout.ome.um if layout.orientation < 5 else layout.ome.um[::-1]
        properties |= {name: repr(size) for name, size in zip(OME_SIZE, sizes, strict=True)}
    if icc := base.tags.get(_ICC):
        properties["openslide.icc-size"] = str(len(icc.value))
    return properties


def _resolution_tags(page: Any, *, is_turned: bool) -> Mapping[str, str]:
    tags = {"tiff.ResolutionUnit": "none", "tiff.XResolution": "", "tiff.YResolution": ""}
    unit = page.tags.get("ResolutionUnit")
    if unit is not None:
        tags["tiff.ResolutionUnit"] = _UNITS.get(int(unit.value), "none")
    for axis, other in ("XY", "YX"):
        tag = page.tags.get(f"{other if is_turned else axis}Resolution")
        if tag is not None and tag.value[1]:
            tags[f"tiff.{axis}Resolution"] = repr(tag.value[0] / tag.value[1])
    return tags


def _warnings(source: TiffSource) -> list[str]:
    layout, bits = source.layout, source.layout.base.bitspersample
    warnings = []
    if len(layout.levels[0]) > 1:
        warnings.append("three grey planes of the file are read as red, green and blue; check the colours")
    if layout.n_repeated:
        warnings.append(
            f"the file holds {layout.n_repeated + 1} pictures of the slide's size, such as focal planes; the first is "
            "read"
        )
    if source.depth < bits:
        warnings.append(
            f"samples of {bits} bits reach {2**source.depth - 1} at most and are read as {source.depth} bits; convert "
            "the slide to 8 bits if the colours look wrong"
        )
    if layout.orientation != UPRIGHT:
        warnings.append(
            f"the file stores the slide turned or mirrored (TIFF orientation {layout.orientation}), and it is read "
            "upright; annotations of programs that ignore this do not fit"
        )
    return warnings
