"""Mutations of texts: annotations, tables and cards of bundles. Half of them know the values, half only the bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

from fuzz.mutation import mutate_bytes

NUMBERS = ("0", "-1", "1e400", "-1e308", "NaN", "Infinity", "1,5", "3.", "007", "1" * 400, '"4"', "null", "1e-320")
CELLS = ("", " ", '"', "=1+1", "0,5", "nan", "-1", "1e9", "ä", "\x00", "train", "a\nb", "x" * 5000, "../..", "NA", ";")
VALUES = (None, True, "", "x", 0, -1, 1, 2, 3.5, 1e-9, 1e300, 2**31, 2**63, [], {}, [0], "\x00", "é" * 300)
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin-1")
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")
WORD = re.compile(r"[A-Za-z_]{3,}")


def mutate_annotation(random: Random, content: bytes) -> tuple[bytes, str]:
    """Return annotations with numbers, words or brackets changed."""
    if random.random() < 0.25:
        mutation = mutate_bytes(random, content)
        return mutation.content, mutation.note
    text, note = content.decode(), ""
    for _ in range(random.choice((1, 1, 2, 8))):
        way = random.choice(("number", "number", "number", "word", "remove", "double"))
        pattern = {"number": NUMBER, "word": WORD}.get(way, re.compile(r"[\[\]{}<>,\"]"))
        matches = list(pattern.finditer(text))
        if not matches:
            break
        match = random.choice(matches)
        number = random.choice((random.choice(NUMBERS), f"{random.uniform(-500, 2000):.3f}"))
        new = {"number": number, "word": random.choice(("Point", "null", "Polygon", "type", "é"))}
        text = text[: match.start()] + new.get(way, match.group() * 2 * (way == "double")) + text[match.end() :]
        note += f"{way} at {match.start()}; "
    encoding = random.choice(ENCODINGS) if random.random() < 0.15 else "utf-8"
    return text.encode(encoding, errors="replace"), f"{note}{encoding}"


def mutate_table(random: Random, content: bytes) -> tuple[bytes, str]:
    """Return a table with cells, delimiters, rows or the encoding changed."""
    if random.random() < 0.3:
        mutation = mutate_bytes(random, content)
        return mutation.content, mutation.note
    rows, note = [line.split(",") for line in content.decode().splitlines()], ""
    for _ in range(random.choice((1, 1, 2, 6))):
        way = random.choice(("cell", "cell", "head", "more", "fewer", "again", "empty", "lost"))
        row = random.choice(rows[:1] if way == "head" else rows)
        column = random.randrange(len(row)) if row else 0
        if way in ("cell", "head") and row:
            row[column] = random.choice((*CELLS, *rows[0]))
        elif way == "more":
            row.insert(column, random.choice(CELLS))
        elif way == "fewer" and row:
            del row[column]
        elif way == "again":
            rows.append(list(row))
        elif way == "empty":
            rows.insert(random.randrange(len(rows)), [])
        elif len(rows) > 1:
            del rows[random.randrange(len(rows))]
        note += f"{way} in column {column}; "
    delimiter, end = random.choice((",", ",", ";", "\t", "|")), random.choice(("\n", "\n", "\r\n", "\r"))
    encoding = random.choice(ENCODINGS) if random.random() < 0.2 else "utf-8"
    text = end.join(delimiter.join(row) for row in rows) + end
    return text.encode(encoding, errors="replace"), f"{note}{delimiter!r} {encoding}"


def mutate_json(random: Random, card: Mapping[str, Any]) -> tuple[str, str]:
    """Return a JSON text with values replaced, removed or doubled anywhere in its tree."""
    tree = json.loads(json.dumps(card))
    notes = []
    for _ in range(random.choice((1, 1, 1, 3))):
        holder, key = random.choice(list(_places(tree)))
        way = random.choice(("value", "value", "number", "remove", "add"))
        if way == "remove":
            del holder[key]
        elif way == "add" and isinstance(holder, dict):
            holder[f"{key} "] = random.choice(VALUES)
        elif way == "number" and isinstance(holder[key], int | float):
            holder[key] = random.choice((holder[key] * 2, -holder[key], holder[key] / 3, holder[key] * 1000, 0, 1))
        else:
            holder[key] = random.choice(VALUES)
        notes.append(f"{way} of {key}")
    return json.dumps(tree), ", ".join(notes)


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value of a tree."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])
