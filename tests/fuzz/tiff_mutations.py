"""Mutations of TIFF files that know directories, entries and tile tables: SVS, NDPI, OME-TIFF and plain TIFF."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from fuzz.mutation import (
    BYTES,
    PIXELS,
    TABLES,
    TAGS,
    Mutation,
    choose_kind,
    damage_block,
    extreme,
    mutate_bytes,
    mutate_text,
)

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
INTEGERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}
OFFSETS, COUNTS, SUB_IFDS, ASCII = (324, 273), (325, 279), 330, 2
MAX_DIRECTORIES = 64
UNUSED_TAG = 65000  # what a deleted entry becomes


@dataclass(frozen=True)
class Entry:
    """Entry of a directory: where it lies, and where its values lie."""

    at: int
    tag: int
    type: int
    count: int
    values_at: int


@dataclass(frozen=True)
class Tile:
    """Coded tile or strip, and the places of its offset and byte count."""

    offset: int
    length: int
    offset_at: int
    count_at: int
    offset_code: str
    count_code: str


class TiffMap:
    """Places of all entries and tiles of a TIFF or BigTIFF."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.order = "<" if content[:2] == b"II" else ">"
        self.is_big = self._number(2, "H") == 43
        self.pointer = "Q" if self.is_big else "I"
        self.directories = list(self._directories())
        self.entries = [entry for _, entries in self.directories for entry in entries]
        self.tiles = [tile for _, entries in self.directories for tile in self._tiles(entries)]

    def _number(self, at: int, code: str) -> int:
        return int(struct.unpack_from(self.order + code, self.content, at)[0])

    def _directories(self) -> Iterator[tuple[int, list[Entry]]]:
        waiting, seen = [self._number(8 if self.is_big else 4, self.pointer)], set[int]()
        while waiting and len(seen) < MAX_DIRECTORIES:
            at = waiting.pop(0)
            if at == 0 or at in seen:
                continue
            seen.add(at)
            entries, following = self._entries(at)
            yield at, entries
            waiting.append(following)
            for entry in entries:
                if entry.tag == SUB_IFDS:
                    waiting += self._values(entry)

    def _entries(self, at: int) -> tuple[list[Entry], int]:
        """Return the entries of a directory and the place of the next."""
        head, step, inline = (8, 20, 8) if self.is_big else (2, 12, 4)
        number, start = self._number(at, "Q" if self.is_big else "H"), at + head
        entries = [self._entry(start + i * step, inline) for i in range(number)]
        return entries, self._number(start + number * step, self.pointer)

    def _entry(self, at: int, inline: int) -> Entry:
        tag, kind = self._number(at, "H"), self._number(at + 2, "H")
        count, values_at = self._number(at + 4, self.pointer), at + 4 + inline
        if count * SIZES.get(kind, 1) > inline:
            values_at = self._number(values_at, self.pointer)
        return Entry(at, tag, kind, count, values_at)

    def _values(self, entry: Entry) -> list[int]:
        code = INTEGERS.get(entry.type, "I")
        return [self._number(entry.values_at + i * SIZES[entry.type], code) for i in range(entry.count)]

    def _tiles(self, entries: list[Entry]) -> Iterator[Tile]:
        offsets = next((entry for entry in entries if entry.tag in OFFSETS), None)
        counts = next((entry for entry in entries if entry.tag in COUNTS), None)
        if offsets is None or counts is None:
            return
        rows = zip(self._values(offsets), self._values(counts), strict=False)
        for i, (offset, length) in enumerate(rows):
            places = (entry.values_at + i * SIZES[entry.type] for entry in (offsets, counts))
            yield Tile(offset, length, *places, INTEGERS[offsets.type], INTEGERS[counts.type])

    # ------------------------------------------------------------ mutations

    def mutate(self, random: Random) -> Mutation:
        """Return a mutation of the file."""
        kind, data = choose_kind(random), bytearray(self.content)
        if kind == BYTES:
            return mutate_bytes(random, self.content)
        notes, undecodable = [], []
        for _ in range(1 if kind == TAGS else random.choice((1, 1, 4, 16))):
            way = {TAGS: self._mutate_tag, TABLES: self._mutate_table, PIXELS: self._mutate_tile}[kind]
            note, is_undecodable = way(random, data)
            notes.append(note)
            undecodable.append(is_undecodable)
        return Mutation(bytes(data), kind, "; ".join(notes), all(undecodable))

    def _write(self, data: bytearray, at: int, code: str, value: int) -> None:
        struct.pack_into(self.order + code, data, at, value)

    def _mutate_tag(self, random: Random, data: bytearray) -> tuple[str, bool]:
        entry = random.choice(self.entries)
        way = random.choice(("value", "value", "value", "type", "count", "delete", "directory"))
        if way == "value":
            self._mutate_value(random, data, entry)
        elif way == "type":
            self._write(data, entry.at + 2, "H", random.choice((*SIZES, 0, 14, 99)))
        elif way == "count":
            self._write(data, entry.at + 4, self.pointer, extreme(random, entry.count, 64 if self.is_big else 32))
        elif way == "delete":
            self._write(data, entry.at, "H", UNUSED_TAG)
        else:
            self._mutate_directory(random, data)
        return f"{way} of tag {entry.tag} at {entry.at}", False

    def _mutate_value(self, random: Random, data: bytearray, entry: Entry) -> None:
        size = SIZES.get(entry.type, 1)
        stop = min(entry.values_at + entry.count * size, len(data))
        if entry.type == ASCII and stop > entry.values_at:
            mutate_text(random, data, entry.values_at, stop)
        elif entry.type in INTEGERS:
            code, at = INTEGERS[entry.type], entry.values_at + random.randrange(min(entry.count, 4) or 1) * size
            self._write(data, at, code, extreme(random, self._number(at, code), 8 * size))
        elif stop > entry.values_at:
            data[random.randrange(entry.values_at, stop)] = random.randrange(256)

    def _mutate_directory(self, random: Random, data: bytearray) -> None:
        """Change the number of entries of a directory, or let it be followed by any place of the file."""
        at, entries = random.choice(self.directories)
        code, head, step = ("Q", 8, 20) if self.is_big else ("H", 2, 12)
        if random.random() < 0.5:
            self._write(data, at, code, extreme(random, len(entries), 16))
        else:
            following = random.choice((at, 0, 8, random.randrange(len(data))))
            self._write(data, at + head + len(entries) * step, self.pointer, following)

    def _mutate_table(self, random: Random, data: bytearray) -> tuple[str, bool]:
        tile, other = random.choice(self.tiles), random.choice(self.tiles)
        way = random.choice(("empty", "offset", "count", "beyond", "swap"))
        if way in ("empty", "count"):
            bits = 8 * struct.calcsize(tile.count_code)
            value = 0 if way == "empty" else extreme(random, tile.length, bits)
            self._write(data, tile.count_at, tile.count_code, value)
        else:
            bits = 8 * struct.calcsize(tile.offset_code)
            values = {"offset": extreme(random, tile.offset, bits), "beyond": len(data) + 1, "swap": other.offset}
            self._write(data, tile.offset_at, tile.offset_code, values[way])
        return f"{way} of the tile at {tile.offset}", way in ("empty", "beyond")

    def _mutate_tile(self, random: Random, data: bytearray) -> tuple[str, bool]:
        usable = [tile for tile in self.tiles if tile.length > 8 and tile.offset + tile.length <= len(data)]
        tile = random.choice(usable)
        way, is_undecodable = damage_block(random, data, tile.offset, tile.offset + tile.length)
        return f"{way} in the tile at {tile.offset}", is_undecodable
