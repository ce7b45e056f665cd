"""Optional dependencies of the program, and the line that installs them."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from napari_lrmil.core.errors import ConfigError

EXTRAS = {  # extra -> modules that it brings
    "gui": ("napari", "magicgui", "superqt", "qtpy", "psygnal", "PySide6"),
    "train": ("lightning", "sklearn"),
    "openvino": ("openvino",),
    "distributed": ("distributed", "dask_jobqueue"),
    "encoders": ("lazyslide_models", "timm"),
    "ome": ("zarr",),
    "lazyslide": ("zarr", "pyarrow"),
    "dicom": ("highdicom",),
}
QT_BINDINGS = ("PySide6", "PyQt6")  # one of them is enough
NAPARI_VERSIONS = ((0, 9, 2), (0, 11))  # from, and below; as the extra `gui` in pyproject.toml


def missing_modules(extra: str) -> tuple[str, ...]:
    """Return the modules of an extra that are not installed."""
    has_qt = extra == "gui" and any(find_spec(name) for name in QT_BINDINGS)
    modules = (name for name in EXTRAS[extra] if not (has_qt and name in QT_BINDINGS))
    return tuple(name for name in modules if find_spec(name) is None)


def pip_line(extra: str) -> str:
    """Return the command that installs an extra, quoted as every shell reads it, that of Windows included."""
    return f'pip install "napari-lrmil[{extra}]"'


def require_extra(extra: str, purpose: str) -> None:
    """Check that an extra is installed, before any work.

    Raises
    ------
    ConfigError
        If a module is missing; `purpose` says what needs it.
    """
    if missing := missing_modules(extra):
        names = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        raise ConfigError(f"{purpose} needs {names}: not installed; {pip_line(extra)}")


def require_known_napari() -> None:
    """Check that the installed napari is one that the docks were made for, where there is one.

    Packages that are put into an existing napari do not bring it, so pip does not compare the versions.

    Raises
    ------
    ConfigError
        If it is older or newer.
    """
    try:
        installed = version("napari")
    except PackageNotFoundError:
        return
    numbers = tuple(int(number) for number in re.findall(r"\d+", installed)[:3])
    first, above = NAPARI_VERSIONS
    if not first <= numbers < above:
        expected = f"{'.'.join(map(str, first))} or newer, below {'.'.join(map(str, above))}"
        raise ConfigError(f"napari {installed} is installed; the docks need {expected}; {pip_line('gui')}")


def extra_of(module: str) -> str | None:
    """Return the extra that brings a module; None if it belongs to no extra."""
    package = module.partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if package in modules), None)
