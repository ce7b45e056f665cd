"""Check of a TIFF's directories before OpenSlide reads them: some impossible ones crash its C library.

Only the directories are read, no tables of tiles and no pixels.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from napari_lrmil.core.errors import SlideError

MAX_DIRECTORIES = 65_535
MAX_TILE_SIDE = 32_767  # pixels; OpenSlide cannot draw a larger one
MAX_TILE_PIXELS = 2**27  # 512 MiB as RGBA
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_REMEDY = "the file is damaged or made to do harm, copy it again from its source"
_TYPE_BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)  # by TIFF's code of a type
_INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _DESCRIPTION, _SAMPLES, _ROWS_PER_STRIP = 256, 257, 258, 259, 270, 277, 278
_STRIPS, _PLANAR, _SOFTWARE, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES = 273, 284, 305, 322, 323, 324, 325
_XMP, _NDPI = 700, 65420
_PLAIN_COMPRESSIONS = (1, 5, 7, 8, 32946)  # none, LZW, JPEG, deflate
_OTHER_READERS = (b"<", b"Philips", b"MedScan")  # beginnings of texts for which OpenSlide has readers of vendors


@dataclass(frozen=True)
class _Entry:
    """An entry of a directory: code of its type, number of its values, and the byte at which they begin."""

    kind: int
    count: int
    at: int

    @property
    def n_bytes(self) -> int:
        """Bytes of its values; 0 for a type that TIFF does not have."""
        return self.count * (_TYPE_BYTES[self.kind] if self.kind < len(_TYPE_BYTES) else 0)


def find_oddities(path: Path) -> tuple[str, ...]:
    """Return why a TIFF is more than plain tiles in complete directories; empty if it is that.

    Raises
    ------
    SlideError
        If it has a directory that OpenSlide certainly cannot read.
    """
    with path.open("rb") as file:
        return tuple(_Structure(path, file).oddities())


class _Structure:
    """Directories of an open TIFF or BigTIFF."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._size = file.seek(0, 2)
        magic = self._read(0, 4)
        self._order = "<" if magic[:2] == b"II" else ">"
        self._is_big = magic in MAGIC[2:]
        self._is_ndpi = False  # Hamamatsu writes 64-bit places into a classic TIFF

    def oddities(self) -> Iterator[str]:
        """Yield what is unusual; raises `SlideError` for what is impossible."""
        seen: set[int] = set()
        at = self._number(8, "Q") if self._is_big else self._number(4, "I")
        while at:
            if at in seen:
                yield f"directory {len(seen)} is an earlier one"  # every library stops here
                break
            if len(seen) >= MAX_DIRECTORIES:
                self._refuse(f"it has more than {MAX_DIRECTORIES} directories; expected some tens")
            entries, end = self._entries(at)
            if entries is None:
                if not seen:
                    self._refuse(f"its first directory, at byte {at}, does not end before the file at {self._size}")
                yield f"directory {len(seen)} is cut short"
                return
            self._is_ndpi |= _NDPI in entries
            yield from self._judge(len(seen), entries)
            seen.add(at)
            at = self._number(end, "Q" if self._is_big or self._is_ndpi else "I")
        if self._is_ndpi:
            yield "it is an NDPI slide"

    # ------------------------------------------------------------ bytes

    def _refuse(self, seen: str) -> NoReturn:
        raise SlideError(self._path, f"not opened, because no library can read it: {seen}; {_REMEDY}")

    def _read(self, at: int, size: int) -> bytes:
        if at + size > self._size:
            return b""
        self._file.seek(at)
        return self._file.read(size)

    def _number(self, at: int, kind: str) -> int:
        """Return a whole number; 0 beyond the end of the file."""
        content = self._read(at, struct.calcsize("=" + kind))
        return int(struct.unpack(self._order + kind, content)[0]) if content else 0

    def _entries(self, at: int) -> tuple[dict[int, _Entry] | None, int]:
        """Return tag -> entry of the directory at a byte, and the byte after them; None if it is cut short."""
        head, place = ("Q", "Q") if self._is_big else ("H", "I")
        begin, layout = at + struct.calcsize("=" + head), self._order + "HH" + 2 * place
        size, room = struct.calcsize(layout), struct.calcsize("=" + place)
        count = self._number(at, head)
        content = self._read(begin, count * size) if 0 < count <= 2**16 else b""
        if not content:
            return None, begin
        entries = {}
        for index, (tag, kind, values, value_at) in enumerate(struct.iter_unpack(layout, content)):
            entry = _Entry(kind, values, value_at)
            if entry.n_bytes <= room:
                entry = _Entry(kind, values, begin + index * size + size - room)
            entries[tag] = entry
        return entries, begin + count * size

    def _value(self, entries: Mapping[int, _Entry], tag: int, default: int = 0) -> int:
        """Return the first value of an entry."""
        entry = entries.get(tag)
        if entry is None or entry.kind not in _INTEGERS or not entry.count:
            return default
        return self._number(entry.at, _INTEGERS[entry.kind])

    # ------------------------------------------------------------ one directory

    def _judge(self, number: int, entries: Mapping[int, _Entry]) -> Iterator[str]:
        name = f"directory {number}"
        width, height = self._value(entries, _WIDTH), self._value(entries, _HEIGHT)
        if not width or not height:
            yield f"{name} states no size"
        elif _TILE_WIDTH in entries or _TILE_HEIGHT in entries:
            yield from self._judge_tiles(name, entries, width, height)
        else:
            rows = min(self._value(entries, _ROWS_PER_STRIP, height) or height, height)
            yield from self._judge_tables(name, entries, -(-height // rows))
        ends = [entry.at + entry.n_bytes for entry in entries.values()]
        if not self._is_ndpi and max(ends) > self._size:
            yield f"{name} has values beyond the end of the file"
        compression, samples = self._value(entries, _COMPRESSION, 1), self._value(entries, _SAMPLES, 1)
        bits = self._value(entries, _BITS, 1)
        if compression not in _PLAIN_COMPRESSIONS or samples not in (1, 3, 4) or bits != 8:
            yield f"{name} has {samples} samples of {bits} bits in compression {compression}"
        texts = [self._read(entries[tag].at, 8) for tag in (_DESCRIPTION, _SOFTWARE) if tag in entries]
        if _XMP in entries or any(text.lstrip().startswith(_OTHER_READERS) for text in texts):
            yield f"{name} is of a vendor whose reader interprets more than directories"

    def _judge_tiles(self, name: str, entries: Mapping[int, _Entry], width: int, height: int) -> Iterator[str]:
        across, down = self._value(entries, _TILE_WIDTH), self._value(entries, _TILE_HEIGHT)
        is_possible = min(across, down) >= 1 and max(across, down) <= MAX_TILE_SIDE
        if not is_possible or across * down > MAX_TILE_PIXELS:
            self._refuse(
                f"{name} states tiles of {across} x {down} px; expected 1 to {MAX_TILE_SIDE} px a side, "
                f"such as 256 x 256, and at most {MAX_TILE_PIXELS} px"
            )
        tiles = -(-width // across) * -(-height // down)
        for listed in self._judge_tables(name, entries, tiles):
            if not self._is_ndpi and min(self._listed(entries)) < tiles:
                self._refuse(f"{listed} of {across} x {down} px")
            yield listed

    def _judge_tables(self, name: str, entries: Mapping[int, _Entry], parts: int) -> Iterator[str]:
        """Yield a clause if the tables of tiles, or strips, are not as long as the number of `parts`."""
        if self._value(entries, _PLANAR, 1) == 2:
            parts *= self._value(entries, _SAMPLES, 1)
        places, sizes = self._listed(entries)
        if not places == sizes == parts:
            yield f"{name} lists {places} places and {sizes} sizes; expected {parts} tiles or strips"

    def _listed(self, entries: Mapping[int, _Entry]) -> tuple[int, int]:
        """Return the lengths of the tables of places and of sizes. Tiles may be listed as strips."""
        absent = _Entry(0, 0, 0)
        places = entries.get(_TILES, entries.get(_STRIPS, absent)).count
        return places, entries.get(_TILE_BYTES, entries.get(_STRIPS + 6, absent)).count
