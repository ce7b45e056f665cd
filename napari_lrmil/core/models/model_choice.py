"""Shipped models by what they are for, and the warning where none was named.

No model knows all tissue. On other tissue than that of its training it answers with certainty, and wrongly.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from napari_lrmil.core.errors import BundleError
from napari_lrmil.core.models.bundle import SHIPPED, shipped_bundles
from napari_lrmil.core.models.card import read_card
from napari_lrmil.core.models.model_list import bundle_folders
from napari_lrmil.core.site_settings import model_folders
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


def listed_model_uses() -> dict[str, str]:
    """Return what ``--bundle`` takes for each model that is listed without a search, and what the model is for.

    Shipped models come first, then those in the site's folders of models, with their names. Models whose card cannot be
    read are left out: ``napari-lrmil models`` says why.
    """
    folders = [folder for folder in model_folders() if folder.is_dir()]
    zoo = {path: read_card(path) for folder in folders for path in bundle_folders(folder) if _is_readable(path)}
    return shipped_model_uses() | {str(path): model_label(card.name, card.intended_use) for path, card in zoo.items()}


def _is_readable(bundle: Path) -> bool:
    try:
        read_card(bundle)
    except BundleError:
        return False
    return True


def unnamed_model_warning(slide: Slide) -> str:
    """Return what to say of a slide that the model of phantoms reads because none was named; empty for a phantom."""
    if has_phantom_mark(slide.properties):
        return ""
    shipped = "; ".join(shipped_model_labels().values())
    return (
        f"no model was named, so {PHANTOM_MODEL} was used, which knows phantoms only: its answer on tissue means "
        f"nothing. Name a model with --bundle: the folder of a trained one, or a shipped one ({shipped})"
    )
