"""Mutations of DICOM files that know element headers, the offset table and the fragments of encapsulated pixels."""

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

LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
TEXTS = (b"AE", b"AS", b"CS", b"DA", b"DS", b"DT", b"IS", b"LO", b"LT", b"PN", b"SH", b"ST", b"TM", b"UI", b"UT")
UNDEFINED = 0xFFFFFFFF
ITEM, PIXEL_DATA = (0xFFFE, 0xE000), (0x7FE0, 0x0010)


@dataclass(frozen=True)
class Element:
    """Element with an explicit kind of value: where its tag, its length and its value lie."""

    at: int
    tag: tuple[int, int]
    vr: bytes
    length_at: int
    length_code: str
    value_at: int
    length: int


class DicomMap:
    """Places of all elements and fragments of a DICOM file with explicit value representations."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.elements: list[Element] = []
        self.fragments: list[Element] = []  # the first is the offset table
        for element in self._elements(132):
            self.elements.append(element)
            if element.tag == PIXEL_DATA:
                self.fragments = list(self._items(element.value_at))

    def _elements(self, at: int) -> Iterator[Element]:
        """Yield elements, those of sequences included, in the order of the file; up to the pixels."""
        while at + 8 <= len(self.content):
            tag = struct.unpack_from("<HH", self.content, at)
            if tag[0] == 0xFFFE:  # an item or an end: its content follows
                at += 8
                continue
            vr = self.content[at + 4 : at + 6]
            length_at, code, value_at = (at + 8, "<I", at + 12) if vr in LONG else (at + 6, "<H", at + 8)
            length = int(struct.unpack_from(code, self.content, length_at)[0])
            yield Element(at, tag, vr, length_at, code, value_at, length)
            if tag == PIXEL_DATA:
                return
            at = value_at if vr == b"SQ" or length == UNDEFINED else value_at + length

    def _items(self, at: int) -> Iterator[Element]:
        while at + 8 <= len(self.content) and struct.unpack_from("<HH", self.content, at) == ITEM:
            length = int(struct.unpack_from("<I", self.content, at + 4)[0])
            yield Element(at, ITEM, b"", at + 4, "<I", at + 8, length)
            at += 8 + length

    def mutate(self, random: Random) -> Mutation:
        """Return a mutation of the file."""
        kind, data = choose_kind(random), bytearray(self.content)
        if kind == BYTES or not self.fragments:
            return mutate_bytes(random, self.content)
        notes, undecodable = [], []
        for _ in range(1 if kind == TAGS else random.choice((1, 1, 4, 16))):
            way = {TAGS: self._mutate_element, TABLES: self._mutate_table, PIXELS: self._mutate_fragment}[kind]
            note, is_undecodable = way(random, data)
            notes.append(note)
            undecodable.append(is_undecodable)
        return Mutation(bytes(data), kind, "; ".join(notes), all(undecodable))

    def _mutate_element(self, random: Random, data: bytearray) -> tuple[str, bool]:
        element = random.choice(self.elements)
        way = random.choice(("value", "value", "value", "vr", "length", "tag"))
        stop = min(element.value_at + element.length, len(data))
        if way == "value" and stop > element.value_at and element.vr != b"SQ":
            if element.vr in TEXTS:
                mutate_text(random, data, element.value_at, stop)
            else:
                data[random.randrange(element.value_at, min(stop, element.value_at + 64))] = random.randrange(256)
        elif way == "vr":
            data[element.at + 4 : element.at + 6] = random.choice((*LONG, *TEXTS, b"ZZ", b"\0\0"))
        elif way == "tag":
            data[element.at + random.randrange(4)] = random.randrange(256)
        else:
            bits = 32 if element.length_code == "<I" else 16
            struct.pack_into(element.length_code, data, element.length_at, extreme(random, element.length, bits))
        return f"{way} of element {element.tag[0]:04x},{element.tag[1]:04x} at {element.at}", False

    def _mutate_table(self, random: Random, data: bytearray) -> tuple[str, bool]:
        table, frames = self.fragments[0], self.fragments[1:]
        if table.length >= 4 and random.random() < 0.5:
            at = table.value_at + 4 * random.randrange(table.length // 4)
            struct.pack_into("<I", data, at, extreme(random, struct.unpack_from("<I", data, at)[0], 32))
            return f"offset table at {at}", False
        frame = random.choice(frames)
        struct.pack_into("<I", data, frame.length_at, extreme(random, frame.length, 32))
        return f"length of the fragment at {frame.at}", False

    def _mutate_fragment(self, random: Random, data: bytearray) -> tuple[str, bool]:
        frame = random.choice([fragment for fragment in self.fragments[1:] if fragment.length > 8])
        way, is_undecodable = damage_block(random, data, frame.value_at, frame.value_at + frame.length)
        return f"{way} in the fragment at {frame.at}", is_undecodable
