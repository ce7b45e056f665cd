"""One family of errors. Each message is a sentence: what was seen, what was expected, what to do."""

from __future__ import annotations

from os import PathLike

Path = str | PathLike[str]


class LrmilError(Exception):
    """An error whose message is meant for the user; `exit_code` is what the command line returns."""

    exit_code = 1


class DiskFullError(LrmilError):
    """No space is left where something was to be written; no other slide would fare better."""


class SlideError(LrmilError):
    """A slide cannot be opened or read; `path` names it."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


class ResolutionError(SlideError):
    """A slide has no resolution, or too coarse a one for what was asked."""


class TissueError(SlideError):
    """A slide has no patch with enough tissue."""


class GeometryError(LrmilError):
    """Resolutions and patch sizes that do not nest."""

    exit_code = 2


class RegionError(LrmilError):
    """An area of a slide cannot be used, or a file of areas cannot be read; then `path` names the file."""

    exit_code = 2

    def __init__(self, message: str, path: Path | None = None) -> None:
        super().__init__(message if path is None else f"{path}: {message}")
        self.path = path


class EncoderError(LrmilError):
    """An encoder is unknown, or its weights do not fit it."""

    exit_code = 2


class BagError(LrmilError):
    """A feature file is broken, incomplete, or made for something else; `path` names it."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


class StoredError(LrmilError):
    """Results of an earlier run are of something else, incomplete or broken; `path` names them."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


class NewerSchemaError(StoredError):
    """Results are of a newer schema version than this program reads; they are neither read nor replaced."""


class BundleError(LrmilError):
    """A bundle is of another schema, incomplete, or altered; `field` names the entry at fault."""

    exit_code = 2

    def __init__(self, path: Path, field: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path, self.field = path, field


class CohortError(LrmilError):
    """A cohort table cannot be used as it is; `path` names it."""

    exit_code = 2

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


class ConfigError(LrmilError):
    """A configuration key or value that means nothing here."""

    exit_code = 2
