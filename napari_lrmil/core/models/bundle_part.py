"""Further files of a bundle, which change what is said of a probability: one reader of limits and of statistics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from napari_lrmil.core.errors import BundleError

MAX_REASON_CHARS = 200
DAMAGED = (ValueError, OSError, KeyError, TypeError, RecursionError)  # what reading a damaged file can raise

Content = TypeVar("Content")


def read_part(folder: Path, name: str, read: Callable[[Path], tuple[Content, bool]]) -> Content | None:
    """Return the content of one file of a bundle; None if the bundle does not have it.

    Parameters
    ----------
    folder, name
        The bundle, and the file in it.
    read
        Function that returns the content of the file, and whether it is of the bundle's model.

    Raises
    ------
    BundleError
        If the file is damaged, or of another model.
    """
    path = folder / name
    if not path.is_file():
        return None
    try:
        content, is_of_model = read(path)
    except DAMAGED as error:
        raise damaged_part(folder, name, str(error)) from error
    if not is_of_model:
        raise BundleError(folder, name, f"{name} is of another model; copy the whole bundle again")
    return content


def damaged_part(folder: Path, name: str, reason: str) -> BundleError:
    """Return the error for a file that cannot be read."""
    shown = " ".join(reason.split())[:MAX_REASON_CHARS]
    return BundleError(folder, name, f"{name} cannot be read ({shown}); copy the bundle again")
