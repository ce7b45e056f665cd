"""Errors of user actions as notifications in the napari window."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

from napari.utils import notifications

from napari_lrmil.core.errors import LrmilError

Result = TypeVar("Result")
# Errors of files begin with an absolute path: folder, name, reason.
PATH_FIRST = re.compile(r"((?:[A-Za-z]:)?[/\\](?:[^:\n]*[/\\])?)([^:/\\\n]+): (.+)", re.DOTALL)


def show_error(message: str) -> None:
    """Show an error as a notification. It has a single line until it is opened, so a folder's name comes last."""
    notifications.show_error(folder_last(message))


def folder_last(message: str) -> str:
    """Return a message that begins with a path with the file's name in its place, and the folder at the end."""
    match = PATH_FIRST.fullmatch(message)
    if match is None:
        return message
    folder, name, reason = match.groups()
    return f"{name}: {reason} (in {folder})"


def show_errors(action: Callable[[], Result]) -> Result | None:
    """Run a user action and return its result; show an `LrmilError` as a notification and return None.

    Any other exception is a defect and reaches napari's own error dialog with its traceback.
    """
    try:
        return action()
    except LrmilError as error:  # its text is one sentence for the user
        show_error(str(error))
        return None
