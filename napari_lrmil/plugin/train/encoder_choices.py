"""Encoders for the teacher: licence, size, and whether their weights are on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from napari_lrmil.core.encoders.spec import ABSENT
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.formatting import format_size
from napari_lrmil.core.models.bundle import shipped_bundles

HUB_PREFIX, REGISTRY_PREFIX = "hf:", "lazyslide:"
HUB_URL = "https://huggingface.co/"


@dataclass(frozen=True)
class EncoderChoice:
    """Encoder that the configuration can name.

    Attributes
    ----------
    name
        Name in the configuration.
    licence, size
        As far as they are known.
    is_local
        Whether its weights are on this machine.
    instructions
        How to get the weights; empty if training downloads them.
    blocked_by
        Sentence on why it cannot be used; empty if it can.
    """

    name: str
    licence: str = "unknown"
    size: str = ""
    is_local: bool = True
    instructions: str = ""
    blocked_by: str = ""

    @property
    def text(self) -> str:
        """One line: licence, size, location of the weights."""
        if self.name == ABSENT:
            return "Not at hand: the HR features alone are used, and the model has no teacher."
        location = f"weights are not here; {self.instructions or 'downloaded when training starts'}"
        if self.is_local:
            location = "weights are here"
        return self.blocked_by or " · ".join(filter(None, (f"licence {self.licence}", self.size, location)))


def list_encoder_choices() -> tuple[EncoderChoice, ...]:
    """Return the shipped encoders and those of the registry, if it is installed; nothing is downloaded."""
    return *map(_describe_shipped, shipped_bundles()), *_list_registry()


def describe_encoder(name: str) -> EncoderChoice:
    """Return the properties of an encoder without loading it.

    Parameters
    ----------
    name
        Shipped model, ``lazyslide:…``, ``hf:…``, file or folder, or ``none`` for one that is not at hand.
    """
    if name == ABSENT:
        return EncoderChoice(name)
    if name.startswith(REGISTRY_PREFIX):
        return _describe_registry_encoder(name)
    if name.startswith(HUB_PREFIX):
        is_local = is_in_hub_cache(name.removeprefix(HUB_PREFIX))
        return EncoderChoice(name, "as its page says", is_local=is_local)
    if name in shipped_bundles():
        return _describe_shipped(name)
    path = Path(name)
    if not name or not path.exists():
        return EncoderChoice(name, blocked_by=f"There is no encoder '{name}'; choose a file, or give hf:owner/name.")
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return EncoderChoice(name, "as its authors say", format_size(sum(f.stat().st_size for f in files)))


def is_in_hub_cache(repository: str) -> bool:
    """Return whether the weights of a repository are in the Hugging Face cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots"
    return (
        any(p.suffix in (".safetensors", ".bin", ".pth", ".pt") for p in folder.rglob("*"))
        if folder.exists()
        else False
    )


def _describe_shipped(name: str) -> EncoderChoice:
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.models.card import TEACHER

    bundle = Bundle(name)
    card, file = bundle.card.teacher, bundle.path / TEACHER
    if card is None or not file.exists():
        return EncoderChoice(name, blocked_by=f"The model {name} has no teacher.")
    return EncoderChoice(name, card.encoder.licence, format_size(file.stat().st_size))


def _list_registry() -> list[EncoderChoice]:
    from napari_lrmil.core.encoders import foundation_cards

    try:
        return [_describe_registry_encoder(f"{REGISTRY_PREFIX}{card.name}") for card in foundation_cards()]
    except LrmilError:
        return []  # the extra is not installed: `describe_encoder` reports it for a named encoder


def _describe_registry_encoder(name: str) -> EncoderChoice:
    from napari_lrmil.core.encoders import foundation_card

    key, _, file = name.removeprefix(REGISTRY_PREFIX).partition("@")
    try:
        card = foundation_card(key)
    except LrmilError as error:
        return EncoderChoice(name, blocked_by=f"{name}: {error}")
    is_local = Path(file).exists() if file else is_in_hub_cache(card.url.removeprefix(HUB_URL).strip("/"))
    instructions = f"agree to its terms at {card.url} and call `hf auth login` once" if card.gated else ""
    return EncoderChoice(name, card.licence, f"{card.parameters} parameters", is_local, instructions)
