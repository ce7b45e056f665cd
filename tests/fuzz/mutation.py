"""Mutations of bytes that know nothing of a format, and the kinds by which mutations are counted."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

TAGS, TABLES, PIXELS, BYTES = "tags", "tile tables", "tile data", "bytes"
SHARES = {TAGS: 0.25, TABLES: 0.25, PIXELS: 0.25, BYTES: 0.25}  # of the mutations of a slide
EXTREMES = (0, 1, 2, 3, 7, 255, 256, 65535, 2**16, 2**31 - 1, 2**31, 2**32 - 1)


@dataclass(frozen=True)
class Mutation:
    """A mutated file.

    Attributes
    ----------
    content
        Bytes of the file.
    kind
        Part that was mutated: one of `SHARES`.
    note
        What was done, for the report of a failure.
    is_undecodable
        Whether tiles were damaged so that they cannot be decoded, and nothing else was touched. An answer that differs
        from that of the undamaged file must then say so.
    """

    content: bytes
    kind: str
    note: str
    is_undecodable: bool = False


def choose_kind(random: Random) -> str:
    """Return the kind of the next mutation."""
    return random.choices(list(SHARES), list(SHARES.values()))[0]


def extreme(random: Random, value: int, bits: int) -> int:
    """Return a number that may be out of range, near `value` or at the limits of its type."""
    limit = (1 << bits) - 1
    near = (value + 1, value - 1, value * 2, value // 2, value ^ (1 << random.randrange(bits)), random.randrange(limit))
    return random.choice((*near, *EXTREMES)) & limit


def mutate_bytes(random: Random, content: bytes) -> Mutation:
    """Return `content` with bytes changed, removed, repeated or cut off."""
    data = bytearray(content)
    way = random.choice(("flip", "head", "cut", "remove", "repeat", "zero"))
    if not data:
        return Mutation(bytes([random.randrange(256)]), BYTES, "one byte")
    at = random.randrange(len(data))
    length = min(random.choice((1, 2, 4, 16, 256, 4096)), len(data) - at)
    if way == "flip":
        for _ in range(random.choice((1, 4, 32))):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif way == "head":
        data[random.randrange(min(64, len(data)))] = random.randrange(256)
    elif way == "cut":
        del data[at:]
    elif way == "remove":
        del data[at : at + length]
    elif way == "repeat":
        data[at:at] = data[at : at + length]
    else:
        data[at : at + length] = bytes(length)
    return Mutation(bytes(data), BYTES, f"{way} at {at}, {length} bytes")


def mutate_text(random: Random, data: bytearray, start: int, stop: int) -> None:
    """Replace a few characters of a text that lies in `data`."""
    for _ in range(random.choice((1, 1, 3, 10))):
        data[random.randrange(start, stop)] = random.choice(b'0123456789.,-+eE|=<>"\x00\xff\r\n ')


def damage_block(random: Random, data: bytearray, start: int, stop: int) -> tuple[str, bool]:
    """Damage a coded tile that lies in `data`; return what was done, and whether no decoder can read it."""
    way = random.choice(("bits", "bits", "zeros", "noise", "half"))
    if way == "bits":
        for _ in range(random.choice((1, 3, 20))):
            data[random.randrange(start, stop)] ^= 1 << random.randrange(8)
    elif way == "half":
        middle = (start + stop) // 2
        data[middle:stop] = bytes(stop - middle)
    else:
        data[start:stop] = bytes(stop - start) if way == "zeros" else random.randbytes(stop - start)
    return way, way in ("zeros", "noise")
