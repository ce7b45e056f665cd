"""Error classes. Each message states what was seen, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike

Path = str | PathLike[str]


class LrmilError(Exception):
    """Base of all errors whose message is meant for the user. `exit_code` is that of the command line."""

    exit_code = 1

    def __reduce__(self) -> tuple[Callable[..., LrmilError], tuple[object, ...]]:
        """Travel between processes with message and attributes: an exception calls its class with the message alone."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[LrmilError], arguments: tuple[object, ...], attributes: dict[str, object]) -> LrmilError:
    error = kind.__new__(kind, *arguments)
    error.__dict__ |= attributes
    return error


class DiskFullError(LrmilError):
    """The disk is full. The work stops, because other slides would fail as well."""


class SlideError(LrmilError):
    """A slide cannot be opened or read. `path` names it."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


class ResolutionError(SlideError):
    """A slide has no resolution, or a resolution that is too coarse for the model."""


class TissueError(SlideError):
    """No patch of a slide has enough tissue."""


class MissingTilesError(SlideError):
    """Too much of a slide's tissue is not stored in its file, or damaged."""


class GeometryError(LrmilError):
    """Resolutions and patch sizes do not nest."""

    exit_code = 2


class RegionError(LrmilError):
    """A region cannot be used, or a file of regions cannot be read; `path` names the file."""

    exit_code = 2

    def __init__(self, message: str, path: Path | None = None) -> None:
        super().__init__(message if path is None else f"{path}: {message}")
        self.path = path


class EncoderError(LrmilError):
    """An encoder is unknown, or weights do not fit it."""

    exit_code = 2


class BagError(LrmilError):
    """A feature file is broken, incomplete, or of another slide or encoder. `path` names it."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


class StoredError(LrmilError):
    """Stored results are broken, incomplete, or of another slide or model. `path` names them."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


class NewerSchemaError(StoredError):
    """Stored results have a newer schema version than this program reads. They are neither read nor replaced."""


class ReviewError(LrmilError):
    """A file of verdicts or annotations cannot be read, or was not overwritten. `path` names it."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


class BundleError(LrmilError):
    """A bundle has another schema version, is incomplete or was altered. `field` names the faulty entry."""

    exit_code = 2

    def __init__(self, path: Path, field: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path, self.field = path, field


class CohortError(LrmilError):
    """A cohort table cannot be used. `path` names it."""

    exit_code = 2

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


class ConfigError(LrmilError):
    """A configuration key or value is invalid."""

    exit_code = 2
