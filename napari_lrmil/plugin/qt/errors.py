"""attempt, Result of `napari_lrmil.plugin.qt.errors`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from napari.utils.notifications import show_error

from napari_lrmil.core.errors import LrmilError

if TYPE_CHECKING:
    pass


Result = TypeVar("Result")


def show_errors(wish: Callable[[], Result]) -> Result | None:
    """Carry out a wish; what goes wrong is a sentence in napari's notifications."""
    try:
        return wish()
    except LrmilError as error:
        show_error(str(error))
        return None
