"""Text from files of others, such as names of slides and classes, made safe for the places where it is shown.

One function for each place that gives characters a meaning of their own. Pages of Jinja escape by themselves.
"""

from __future__ import annotations

import html
import os
import re

# Control characters, marks that turn the writing direction, and bytes that are not UTF-8.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str | os.PathLike[str]) -> str:
    """Return text for one line of a terminal or a file in UTF-8: control characters and ragged bytes become escapes.

    It is not safe for markup of rich: print it as `rich.text.Text`.
    """
    return UNPRINTABLE.sub(_escape, os.fspath(text))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as Python represents it
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def escape_mathtext(text: str) -> str:
    """Return text for matplotlib, which would set what stands between two dollar signs as a formula."""
    return printable(text).replace("$", r"\$")


def escape_qt(text: str) -> str:
    """Return text for a tooltip of Qt, which takes text with tags for HTML. Other text is returned as it is."""
    return f"<qt>{html.escape(text)}</qt>".replace("\n", "<br>") if "<" in text else text
