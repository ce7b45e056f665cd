"""Names of slides: the name under which results are stored."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from napari_lrmil.core.text_escapes import UNPRINTABLE

MAX_NAME_BYTES = 180  # file systems allow 255; temporary and feature files add to the name
RESERVED_NAMES = (  # files and folders that commands write beside the folders of slides
    *("predictions.csv", "failures.csv", "cohort.json", "report.html", "metrics.json", "slides.json"),
    *("patients.csv", "patients.json"),
    *("review.csv", "review_seen.csv", "review_slides.csv", "review_agreement.csv"),
    *("attention", "thumbnails"),
)
IS_WINDOWS = os.name == "nt"
_FORBIDDEN_ON_WINDOWS = re.compile(r'[<>:"|?*]')  # a colon would write into a hidden stream of another file
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def slide_name(path: Path) -> str:
    """Return the name of a slide's results: the file name without its ending, or the full name of a folder.

    The name is that of a file inside the folder of results on every file system, and it is printable. A name that is
    not, such as ``..`` or one in ragged bytes, is mapped to one that is. Equal paths give equal names.
    """
    if not os.path.isdir(path):  # pathlib raises an error for a name that is too long to exist
        return safe_name(path.stem)
    # A folder given as "." or ".." has a name only once it is resolved. DICOM numbers have dots, so no ending.
    return safe_name(path.resolve().name if path.name in ("", ".", "..") else path.name)


def safe_name(name: str) -> str:
    """Return a name that can be the name of a file or folder of results; see `slide_name`."""
    # Percent codes: "/" cannot be in a name, and a backslash would be a separator on Windows.
    name = UNPRINTABLE.sub(_percent_code, name)
    if IS_WINDOWS:
        name = _FORBIDDEN_ON_WINDOWS.sub(_percent_code, name)
    stripped = name.rstrip(". ")  # Windows drops them at the end
    if stripped != name or not stripped:
        name = stripped + "".join(f"%{ord(c):02X}" for c in name[len(stripped) :]) or "slide"
    if name.casefold() in RESERVED_NAMES or _WINDOWS_DEVICE.fullmatch(name):
        name = f"{name}_slide"
    data = name.encode()
    if len(data) > MAX_NAME_BYTES:
        digest = hashlib.sha256(data).hexdigest()[:8]  # the beginnings of two long names may be equal
        name = f"{data[: MAX_NAME_BYTES - 9].decode(errors='ignore')}~{digest}"
    return name


def _percent_code(match: re.Match[str]) -> str:
    # surrogateescape gives the byte of the file name; surrogatepass takes what no file name on Linux can hold.
    errors = "surrogateescape" if 0xDC80 <= ord(match[0]) <= 0xDCFF else "surrogatepass"
    return "".join(f"%{byte:02X}" for byte in match[0].encode(errors=errors))
