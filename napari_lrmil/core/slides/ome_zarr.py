"""Reader of OME-Zarr slides (NGFF 0.4 and 0.5) through `zarr`, which the extra ``ome`` installs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.geometry import Level
from napari_lrmil.core.slides.byte_lru import ByteLru
from napari_lrmil.core.slides.missing_tiles import TileMap
from napari_lrmil.core.slides.ome_metadata import NOT_THE_SLIDE, OmeImage, holds_image, read_ome_attributes
from napari_lrmil.core.slides.openslide_handle import READER, READER_REASON, READER_WARNINGS, Handle
from napari_lrmil.core.slides.pixel_source import UPRIGHT, PixelSourceHandle, Rgba, paste
from napari_lrmil.core.slides.resolution import OME_SIZE, number, unit_in_um

TILE_BYTES = 64 * 2**20  # of decoded chunks of one slide
MAX_CHUNK_BYTES = 2**28
CRC_BYTES, NOT_IN_SHARD = 4, b"\xff" * 8  # of the index of a shard
HASHED_PIXELS = 4_000_000  # of the coarsest level; of a larger one the middle is hashed
_AXES_04 = ("t", "c", "z", "y", "x")  # of files that do not name their axes


class UnsupportedZarrError(Exception):
    """A Zarr folder that is no brightfield slide. The message is a clause that states the reason."""


def open_ome_zarr(path: Path) -> Handle:
    """Return a handle of an OME-Zarr folder.

    Raises
    ------
    SlideError
        If `zarr` is not installed, or the folder holds no brightfield slide.
    """
    try:
        import zarr  # noqa: F401
    except ImportError as error:
        raise SlideError(path, 'OME-Zarr needs zarr; pip install "napari-lrmil[ome]"') from error
    try:
        source = ZarrSource(_main_image(path))
    except UnsupportedZarrError as error:
        raise SlideError(path, f"not a slide that can be read: {error}") from error
    except Exception as error:  # zarr raises many kinds on broken metadata
        raise SlideError(
            path, f"the OME-Zarr metadata cannot be read ({error}); expected NGFF 0.4 or 0.5, copy the folder again"
        ) from error
    return PixelSourceHandle(source, source.properties())


def _main_image(folder: Path) -> Path:
    """Return the group of the slide: `folder`, or its largest image that is not named as a label or an overview."""
    if holds_image(folder):
        return folder
    images = [part for part in sorted(folder.iterdir()) if part.is_dir() and holds_image(part)]
    names = {part: str(read_ome_attributes(part)["multiscales"][0].get("name", "")) for part in images}
    slides = [part for part in images if not NOT_THE_SLIDE.search(names[part])] or images
    return max(slides, key=_area)


def _area(image: Path) -> int:
    import zarr

    first = read_ome_attributes(image)["multiscales"][0]["datasets"][0]["path"]
    height, width = zarr.open_array(image / first, mode="r").shape[-2:]
    return int(height) * int(width)


@dataclass(frozen=True)
class _Axes:
    """Names of the axes of all arrays of an image, and its units."""

    names: tuple[str, ...]
    units: tuple[str, ...]

    def index(self, **places: Any) -> tuple[Any, ...]:
        """Return an index with these slices of axes; channels are taken whole, other axes at 0."""
        return tuple(places.get(name, slice(None) if name == "c" else 0) for name in self.names)


class ZarrSource:
    """Pixels of an OME-Zarr image as RGBA. Reads are thread-safe.

    A chunk that is not stored has the fill value of its level by definition. Writers leave such chunks out, often in
    glass. The fill value 0, which is the default, would be black: a chunk of that level is transparent instead, even if
    it lacks one colour alone.

    Parameters
    ----------
    folder
        Group of the image.

    Raises
    ------
    UnsupportedZarrError
        If the image is no plane in red, green and blue, or in grey.
    """

    def __init__(self, folder: Path) -> None:
        import zarr

        self._folder = folder
        self._attributes = read_ome_attributes(folder)
        self._multiscale = self._attributes["multiscales"][0]
        self._datasets = self._multiscale["datasets"]
        self._paths = [folder / str(part["path"]) for part in self._datasets]
        self._arrays = [zarr.open_array(path, mode="r") for path in self._paths]
        self._axes = self._read_axes()
        self._tiles: ByteLru[tuple[int, int, int], Rgba] = ByteLru(TILE_BYTES)
        self._require_readable()

    def _read_axes(self) -> _Axes:
        axes = self._multiscale.get("axes") or _AXES_04[-self._arrays[0].ndim :]
        parts = [axis if isinstance(axis, dict) else {"name": axis} for axis in axes]
        return _Axes(tuple(part["name"] for part in parts), tuple(str(part.get("unit", "")) for part in parts))

    def _require_readable(self) -> None:
        array = self._arrays[0]
        sizes = dict(zip(self._axes.names, array.shape, strict=True))
        if not {"x", "y"} <= sizes.keys():
            raise UnsupportedZarrError(f"its axes are {', '.join(sizes)}; expected x and y")
        stack = [f"{size} along {name}" for name, size in sizes.items() if name not in "xyc" and size > 1]
        if stack:
            raise UnsupportedZarrError(f"it is a stack ({', '.join(stack)}); expected one plane")
        channels, names = sizes.get("c", 1), self._channel_names()
        is_rgb = channels == 3 and OmeImage("", 0, 0, None, names or ("",) * 3).is_rgb_by_name
        if array.dtype != np.uint8 or not (is_rgb or channels == 1):
            shown = ", ".join(filter(None, names)) or "without names"
            raise UnsupportedZarrError(
                f"it has {channels} channels of the type {array.dtype} ({shown}), as fluorescence has; expected "
                "brightfield in red, green and blue, of 8 bits"
            )
        if any(other.dtype != array.dtype or other.ndim != array.ndim for other in self._arrays):
            raise UnsupportedZarrError("its levels differ in their axes or types")
        if max(int(np.prod(other.chunks)) for other in self._arrays) > MAX_CHUNK_BYTES:
            raise UnsupportedZarrError(f"its chunks are larger than {MAX_CHUNK_BYTES >> 20} MiB")

    def _channel_names(self) -> tuple[str, ...]:
        channels = (self._attributes.get("omero") or {}).get("channels") or ()
        names = tuple(str(channel.get("label") or "") for channel in channels)
        return ("",) * len(names) if all(name.isdigit() for name in names) else names

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each level, finest first."""
        x, y = (self._axes.names.index(name) for name in "xy")
        return tuple((int(array.shape[x]), int(array.shape[y])) for array in self._arrays)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Rgba:
        """Return a window, transparent outside the level."""
        out = np.zeros((height, width, 4), np.uint8)
        across, down = self.sizes[level]
        wide, high = self._chunk(level)
        right, bottom = min(x + width, across), min(y + height, down)
        for row in range(max(0, y) // high, -(-bottom // high)):
            for column in range(max(0, x) // wide, -(-right // wide)):
                paste(out, x, y, self._tile(level, row, column), column * wide, row * high)
        return out

    def _chunk(self, level: int) -> tuple[int, int]:
        chunks = dict(zip(self._axes.names, self._arrays[level].chunks, strict=True))
        return int(chunks["x"]), int(chunks["y"])

    def _tile(self, level: int, row: int, column: int) -> Rgba:
        key = level, row, column
        tile = self._tiles.get(key)
        if tile is None:
            tile = self._decode(level, row, column)
            self._tiles.put(key, tile)
        return tile

    def _decode(self, level: int, row: int, column: int) -> Rgba:
        (wide, high), (across, down) = self._chunk(level), self.sizes[level]
        shape = min(high, down - row * high), min(wide, across - column * wide)
        rgba = np.zeros((*shape, 4), np.uint8)
        if self._fill_value(level) or not self._is_missing(level, row, column):
            rows = slice(row * high, row * high + shape[0])
            columns = slice(column * wide, column * wide + shape[1])
            rgba[..., :3] = self._colours(np.asarray(self._arrays[level][self._axes.index(y=rows, x=columns)]))
            rgba[..., 3] = 255
        return rgba

    def _colours(self, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return values of the axes y, x and perhaps c, in the file's order, as (height, width, 1 or 3)."""
        order = [name for name in self._axes.names if name in ("y", "x", "c")]
        if "c" not in order:
            order, values = [*order, "c"], values[..., None]
        return values.transpose([order.index(name) for name in "yxc"])

    def _fill_value(self, level: int) -> int:
        return int(self._arrays[level].fill_value or 0)

    def _is_missing(self, level: int, row: int, column: int) -> bool:
        """Return whether a tile has no pixels, see `ZarrSource`."""
        wide, high = self._chunk(level)
        depth = dict(zip(self._axes.names, self._arrays[level].shape, strict=True)).get("c", 1)
        step = dict(zip(self._axes.names, self._arrays[level].chunks, strict=True)).get("c", 1)
        stored = [self._is_stored(level, row * high, column * wide, c) for c in range(0, depth, step)]
        return not any(stored) if self._fill_value(level) else not all(stored)

    def _is_stored(self, level: int, y: int, x: int, c: int) -> bool:
        """Return whether the file of a chunk exists, and holds the chunk if it is a shard."""
        array, places = self._arrays[level], {"y": y, "x": x, "c": c}
        starts = tuple(places.get(name, 0) for name in self._axes.names)
        shards = getattr(array, "shards", None)
        index = tuple(start // size for start, size in zip(starts, shards or array.chunks, strict=True))
        file: Path = self._paths[level] / array.metadata.encode_chunk_key(index)
        if shards is None or not file.is_file():
            return file.is_file()
        inner = tuple(start % shard // chunk for start, shard, chunk in zip(starts, shards, array.chunks, strict=True))
        counts = tuple(shard // chunk for shard, chunk in zip(shards, array.chunks, strict=True))
        return _is_in_shard(file, array.metadata.codecs[0], counts, inner)

    def missing_tiles(self, level: Level, orientation: int = UPRIGHT) -> TileMap | None:
        """Return the chunks of a level that are not stored; None if all are."""
        wide, high = self._chunk(level.index)
        columns, rows = -(-level.width // wide), -(-level.height // high)
        is_missing = [self._is_missing(level.index, row, column) for row in range(rows) for column in range(columns)]
        if not any(is_missing):
            return None
        return TileMap(level, (wide, high), np.array(is_missing).reshape(rows, columns), orientation)

    def properties(self) -> dict[str, str]:
        """Return the properties as OpenSlide names them. The hash is over the metadata and the coarsest level."""
        properties = {
            "openslide.vendor": "ome-zarr",
            "openslide.quickhash-1": self._hash(),
            READER: "zarr",
            READER_REASON: "OpenSlide does not read OME-Zarr",
            READER_WARNINGS: "",
        }
        sizes = [self._pixel_size(name) for name in "xy"]
        if None not in sizes:
            properties |= {name: repr(size) for name, size in zip(OME_SIZE, sizes, strict=True)}
        return properties

    def _pixel_size(self, axis: str) -> float | None:
        """Return µm per pixel of level 0; None if the file states no scale or no unit of length."""
        place = self._axes.names.index(axis)
        size = unit_in_um(self._axes.units[place])
        for part in (self._datasets[0], self._multiscale):
            scales = [step for step in part.get("coordinateTransformations") or () if step.get("type") == "scale"]
            for step in scales:
                factor = number(str(step["scale"][place]))
                size = size * factor if size and factor else None
        return size

    def _hash(self) -> str:
        digest = hashlib.sha256(json.dumps([self._attributes, self.sizes], sort_keys=True).encode())
        level = len(self._arrays) - 1
        width, height = self.sizes[level]
        side = int(HASHED_PIXELS**0.5)
        left, top = max(0, (width - side) // 2), max(0, (height - side) // 2)
        try:
            digest.update(self.read(level, left, top, min(side, width), min(side, height)).tobytes())
        except Exception:  # zarr raises many kinds on a damaged chunk, which is counted when it is read for a result
            files = (file for file in sorted(self._paths[level].rglob("*")) if file.is_file())
            sizes = [(file.relative_to(self._paths[level]).as_posix(), file.stat().st_size) for file in files]
            digest.update(json.dumps(sizes).encode())
        return digest.hexdigest()

    def close(self) -> None:
        """Free the cache; Zarr keeps no file open."""
        self._tiles.clear()


def _is_in_shard(file: Path, codec: Any, counts: tuple[int, ...], inner: tuple[int, ...]) -> bool:
    """Return whether a shard holds one of its chunks: its index has no offset for those that it lacks.

    Parameters
    ----------
    file, codec
        The shard, and Zarr's codec of it.
    counts
        Number of chunks along each axis.
    inner
        Place of the chunk among them.
    """
    kinds = [type(part).__name__ for part in codec.index_codecs]
    if kinds != ["BytesCodec", "Crc32cCodec"]:  # of what every writer uses; another index is left to zarr
        return True
    size, at_end = 16 * int(np.prod(counts)), codec.index_location.value == "end"
    with file.open("rb") as shard:
        place = file.stat().st_size - size - CRC_BYTES if at_end else 0
        shard.seek(max(0, place) + 16 * int(np.ravel_multi_index(inner, counts)))
        return shard.read(8) != NOT_IN_SHARD
