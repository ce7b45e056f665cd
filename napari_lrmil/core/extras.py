"""Optional dependencies of the program, and the line that installs them."""

from __future__ import annotations

from importlib.util import find_spec

from napari_lrmil.core.errors import ConfigError

EXTRAS = {  # extra -> modules that it brings
    "gui": ("PySide6",),
    "train": ("lightning", "sklearn"),
    "openvino": ("openvino",),
    "distributed": ("distributed", "dask_jobqueue"),
    "encoders": ("lazyslide_models", "timm"),
    "ome": ("zarr",),
}
QT_BINDINGS = ("PySide6", "PyQt6")  # either will do


def missing_modules(extra: str) -> tuple[str, ...]:
    """Return the modules of an extra that are not installed."""
    if extra == "gui" and any(find_spec(name) for name in QT_BINDINGS):
        return ()
    return tuple(name for name in EXTRAS[extra] if find_spec(name) is None)


def pip_line(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'napari-lrmil[{extra}]'"


def require_extra(extra: str, purpose: str) -> None:
    """Check that an extra is installed, before any work.

    Raises
    ------
    ConfigError
        If a module is missing; `purpose` says what needs it.
    """
    if missing := missing_modules(extra):
        raise ConfigError(f"{purpose} needs {' and '.join(missing)}: not installed; {pip_line(extra)}")


def extra_of(module: str) -> str | None:
    """Return the extra that brings a module; None if it belongs to no extra."""
    package = module.partition(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if package in modules), None)
