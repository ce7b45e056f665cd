"""Shipped models by what they are for, and the warning where none was named.

No model knows all tissue. On other tissue than that of its training it answers with certainty, and wrongly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_lrmil.core.models.bundle import SHIPPED, shipped_bundles
from napari_lrmil.core.models.card import read_card
from napari_lrmil.core.slides.phantom_mark import PHANTOM_MODEL, has_phantom_mark

if TYPE_CHECKING:
    from napari_lrmil.core.slides.slide import Slide


def model_label(name: str, intended_use: str) -> str:
    """Return a model's name with what it is for, as in ``demo: phantoms only``."""
    return f"{name}: {intended_use}" if intended_use else name


def shipped_model_labels() -> dict[str, str]:
    """Return the names of the shipped models, and for each the text by which it is listed."""
    return {name: model_label(name, read_card(SHIPPED / name).intended_use) for name in shipped_bundles()}


def shipped_model_uses() -> dict[str, str]:
    """Return the names of the shipped models, and for each what it is for; its name if the card does not say."""
    return {name: read_card(SHIPPED / name).intended_use or name for name in shipped_bundles()}


def unnamed_model_warning(slide: Slide) -> str:
    """Return what to say of a slide that the model of phantoms reads because none was named; empty for a phantom."""
    if has_phantom_mark(slide.properties):
        return ""
    shipped = "; ".join(shipped_model_labels().values())
    return (
        f"no model was named, so {PHANTOM_MODEL} was used, which knows phantoms only: its answer on tissue means "
        f"nothing. Name a model with --bundle: the folder of a trained one, or a shipped one ({shipped})"
    )
