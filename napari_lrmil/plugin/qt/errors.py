"""Errors of user actions as notifications in the napari window."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from napari.utils.notifications import show_error

from napari_lrmil.core.errors import LrmilError

Result = TypeVar("Result")


def show_errors(action: Callable[[], Result]) -> Result | None:
    """Run a user action and return its result; show an `LrmilError` as a notification and return None.

    Any other exception is a defect and reaches napari's own error dialog with its traceback.
    """
    try:
        return action()
    except LrmilError as error:  # its text is one sentence for the user
        show_error(str(error))
        return None
