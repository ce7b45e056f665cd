"""Result of one check of an installation."""

from __future__ import annotations

from dataclasses import dataclass

OK, NOTE, FAILED = "ok", "note", "failed"


@dataclass(frozen=True)
class Check:
    """One check of an installation.

    Attributes
    ----------
    name
        What was checked.
    text
        What was seen.
    status
        ``ok``; ``note``: something is missing that not everybody needs; ``failed``: the program would not work.
    remedy
        What to do; empty if nothing is to be done.
    """

    name: str
    text: str
    status: str = OK
    remedy: str = ""
