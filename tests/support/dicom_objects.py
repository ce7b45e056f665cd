"""DICOM files of a few attributes, as the search for slides reads them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

WSI = "1.2.840.10008.5.1.4.1.1.77.1.6"
REPORT = "1.2.840.10008.5.1.4.1.1.88.33"
EXPLICIT, IMPLICIT, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"


def element(tag: int, kind: str, value: str | bytes, *, explicit: bool = True) -> bytes:
    """Return an element; `value` is padded to an even length."""
    data = value.encode() if isinstance(value, str) else value
    data += b"\0" * (len(data) % 2)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if not explicit:
        return head + struct.pack("<I", len(data)) + data
    if kind in ("OB", "SQ"):
        return head + kind.encode() + b"\0\0" + struct.pack("<I", len(data)) + data
    return head + kind.encode() + struct.pack("<H", len(data)) + data


def write_dicom(path: Path, series: str, sop_class: str = WSI, *, kind: str = "VOLUME", syntax: str = EXPLICIT) -> Path:
    """Write a DICOM file without pixels, with a nested sequence of undefined length before the series."""
    explicit = syntax != IMPLICIT
    item = element(0x00080100, "SH", "code", explicit=explicit)
    undefined = struct.pack("<I", 0xFFFFFFFF)
    sequence = struct.pack("<HH", 0x0008, 0x1032) + (b"SQ\0\0" if explicit else b"") + undefined
    sequence += struct.pack("<HH", 0xFFFE, 0xE000) + undefined + item
    sequence += struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    content = element(0x00080008, "CS", f"ORIGINAL\\PRIMARY\\{kind}\\NONE", explicit=explicit)
    content += element(0x00080016, "UI", sop_class, explicit=explicit)
    content += element(0x00080060, "CS", "SM" if sop_class == WSI else "SR", explicit=explicit) + sequence
    content += element(0x0020000E, "UI", series, explicit=explicit)
    if syntax == DEFLATED:
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        content = packer.compress(content) + packer.flush()
    meta = element(0x00020001, "OB", b"\0\1") + element(0x00020002, "UI", sop_class) + element(0x00020010, "UI", syntax)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\0" * 128 + b"DICM" + element(0x00020000, "UL", struct.pack("<I", len(meta))) + meta + content)
    return path
