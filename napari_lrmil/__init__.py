"""Low-resolution multiple instance learning for whole-slide images, distilled from a high-resolution teacher.

Research software: no output is a diagnosis.

The public functions are loaded on first use. ``import napari_lrmil`` itself loads neither torch nor Qt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_lrmil.version import __version__

if TYPE_CHECKING:
    from napari_lrmil.api import (
        extract_features,
        load_bundle,
        open_slide,
        predict,
        predict_patients,
        read_prediction,
        train,
    )

_FUNCTIONS = (
    "extract_features",
    "load_bundle",
    "open_slide",
    "predict",
    "predict_patients",
    "read_prediction",
    "train",
)
__all__ = [
    "__version__",
    "extract_features",
    "load_bundle",
    "open_slide",
    "predict",
    "predict_patients",
    "read_prediction",
    "train",
]


def __getattr__(name: str) -> Any:
    """Load a public function on first use (PEP 562)."""
    if name not in _FUNCTIONS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from napari_lrmil import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
