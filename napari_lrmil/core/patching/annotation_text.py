"""Text of an annotation file: plain, gzip or zip, in any Unicode encoding or a declared or Western one."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, Protocol

MAX_BYTES = 2**29  # unpacked: half a gigabyte is some five million corners, and a packed bomb is far above
GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"
ENDINGS = (".geojson", ".json", ".xml")
BYTE_ORDER_MARKS = (  # UTF-32 first: its mark begins like that of UTF-16
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
)
WITHOUT_MARK = (  # zero bytes among the first four characters, of which the first is ASCII in JSON and XML
    (re.compile(rb"\0\0\0[^\0]"), "utf-32-be"),
    (re.compile(rb"[^\0]\0\0\0"), "utf-32-le"),
    (re.compile(rb"\0[^\0]"), "utf-16-be"),
    (re.compile(rb"[^\0]\0"), "utf-16-le"),
)
DECLARED = re.compile(r"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
# Python has codecs of other kinds too, such as "unicode_escape".
CHARACTER_SET = re.compile(r"(utf|iso|latin|windows|cp|us-ascii|ascii|big5|gb|euc|shift|koi8|mac)", re.IGNORECASE)
WESTERN = "cp1252"


class AnnotationText(NamedTuple):
    """Text of an annotation file; `guessed` names the encoding if it was neither stated nor UTF-8."""

    text: str
    guessed: str | None = None


class UnreadableTextError(ValueError):
    """A file holds no text of annotations. The message says what it holds instead and what to do."""


def read_annotation_text(path: Path) -> AnnotationText:
    """Return the text of a file, unpacked if it is gzip or a zip of one annotation file.

    Raises
    ------
    OSError
        If the file cannot be read.
    UnreadableTextError
        If it is too large, packed badly, or a zip of no or several annotation files.
    """
    if path.exists() and not path.is_file() and not path.is_dir():  # reading a pipe would wait for its writer
        raise UnreadableTextError("it is a pipe or a device, expected a file")
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(0)
        if head.startswith(GZIP):
            return decode_text(_read_gzip(file))
        return decode_text(_read_zip(file) if head == ZIP else _read_limited(file))


class _Stream(Protocol):
    def read(self, size: int, /) -> bytes: ...


def _read_limited(stream: _Stream) -> bytes:
    data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UnreadableTextError(
            f"it holds more than {MAX_BYTES // 2**20} MiB of text; export the regions alone, without cells and tiles"
        )
    return data


def _read_gzip(file: IO[bytes]) -> bytes:
    import gzip
    import zlib

    try:
        with gzip.open(file) as stream:
            return _read_limited(stream)
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableTextError(f"its gzip data is damaged ({error}); export it again") from error


def _read_zip(file: IO[bytes]) -> bytes:
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if _is_annotation_name(name)]
            if len(names) != 1:
                raise UnreadableTextError(
                    f"the zip holds {len(names) or 'no'} annotation files, expected one ({', '.join(ENDINGS)}); "
                    "unpack it and choose one"
                )
            with archive.open(names[0]) as stream:
                return _read_limited(stream)
    # RuntimeError: a password; NotImplementedError, a RuntimeError: an unknown compression.
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise UnreadableTextError(f"the zip cannot be unpacked ({error}); unpack it by hand or export again") from error


def _is_annotation_name(name: str) -> bool:
    """Return whether a member of a zip holds annotations; macOS adds ``__MACOSX/._name`` for each file."""
    path = PurePosixPath(name)
    is_hidden = path.name.startswith(".") or "__MACOSX" in path.parts
    return path.suffix.lower() in ENDINGS and not is_hidden


def decode_text(data: bytes) -> AnnotationText:
    """Return the text of bytes: by byte order mark, zero bytes, declaration, as UTF-8, and last as Western Windows."""
    for encoding in _stated_encodings(data):
        try:
            return AnnotationText(data.decode(encoding))
        except (UnicodeError, LookupError):  # the declaration is wrong: some programs declare UTF-16 and write UTF-8
            continue
    return AnnotationText(data.decode(WESTERN, errors="replace"), guessed="Windows-1252")


def _stated_encodings(data: bytes) -> list[str]:
    """Return the encodings to try, the most certain one first."""
    marked = [encoding for mark, encoding in BYTE_ORDER_MARKS if data.startswith(mark)]
    if marked:
        return marked[:1]
    zeros = [encoding for pattern, encoding in WITHOUT_MARK if pattern.match(data)]
    declared = DECLARED.match(data[:200].decode("latin-1"))
    # UTF-8 before a declared 8-bit set would be safer for names, but a declaration is the writer's own word.
    stated = [declared[1]] if declared and CHARACTER_SET.match(declared[1]) and not _is_wide(declared[1]) else []
    return [*zeros[:1], *stated, "utf-8"]


def _is_wide(encoding: str) -> bool:
    """Return whether an encoding has several bytes per ASCII character, which the declaration itself rules out."""
    return encoding.lower().startswith(("utf-16", "utf16", "utf-32", "utf32"))
