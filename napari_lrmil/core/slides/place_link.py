"""Links to a place on a slide: file, position, magnification and rotation, as text that one user sends to another.

A link has no character that a shell would interpret, so that it can be pasted behind ``napari-lrmil view`` as it is.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath
from urllib.parse import quote, unquote

from napari_lrmil.core.errors import LrmilError

SCHEME = "napari-lrmil:"
DRIVE = re.compile(r"^/+(?=[A-Za-z]:/)")  # slashes before the letter of a drive
FIELDS, ROTATION = ("x_um", "y_um", "magnification"), "rotation"


@dataclass(frozen=True)
class PlaceLink:
    """Place on a slide.

    Attributes
    ----------
    slide
        The slide's file or folder.
    x_um, y_um
        Centre of the view, in µm from the corner of level 0.
    magnification
        Nominal, such as 20 for 0.5 µm per screen pixel.
    rotation
        Rotation of the view in degrees, clockwise; 0 is left out of the text.
    """

    slide: Path
    x_um: float
    y_um: float
    magnification: float
    rotation: float = 0.0

    def as_text(self) -> str:
        """Return the link; `parse_link` reads it."""
        place = f"x_um={self.x_um:.1f},y_um={self.y_um:.1f},magnification={self.magnification:.4g}"
        place += f",{ROTATION}={self.rotation:g}" if self.rotation else ""
        return f"{SCHEME}{_quote_path(self.slide.absolute())}@{place}"


def _quote_path(path: PurePath) -> str:
    """Return an absolute path as a link holds it: after one slash, also before the letter of a drive."""
    text = path.as_posix()
    if isinstance(path, PureWindowsPath) and text.startswith("//"):  # a share of the network
        # A command line passes the link as a path, which would make one slash of two.
        return "/%2F" + quote(text.lstrip("/"), safe="/:")
    return quote("/" + text.lstrip("/"), safe="/:")


def is_link(text: str) -> bool:
    """Return whether a text is a link to a place on a slide."""
    return text.strip().startswith(SCHEME)


def parse_link(text: str) -> PlaceLink:
    """Return the place of a link.

    Raises
    ------
    LrmilError
        If the text is no complete link.
    """
    # A command line passes it as a path, which turns slashes round on Windows.
    path, _, place = text.strip().removeprefix(SCHEME).replace("\\", "/").rpartition("@")
    values = dict(part.split("=", 1) for part in place.split(",") if "=" in part)
    missing = [name for name in FIELDS if name not in values]
    if not is_link(text) or not path or missing:
        lacking = f"; it lacks {', '.join(missing)}" if missing else ""
        raise LrmilError(f"'{text.strip()}' is no link to a place on a slide{lacking}; copy it anew in the window")
    x, y, magnification = (_number(text, name, values[name]) for name in FIELDS)
    if magnification <= 0:
        raise LrmilError(f"the link has the magnification {magnification:g}; expected a number above 0")
    rotation = _number(text, ROTATION, values.get(ROTATION, "0"))
    return PlaceLink(Path(DRIVE.sub("", unquote(path))), x, y, magnification, rotation)


def _number(link: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise LrmilError(f"the link has '{text}' as {name}; expected a number (in {link.strip()})")
    return value
