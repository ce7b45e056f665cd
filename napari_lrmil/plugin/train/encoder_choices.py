"""Which encoders can teach: licence, size, and whether their weights are on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.formatting import format_size
from napari_lrmil.core.models.bundle import shipped_bundles

HUB_PREFIX, REGISTRY_PREFIX = "hf:", "lazyslide:"
HUB_URL = "https://huggingface.co/"


@dataclass(frozen=True)
class EncoderChoice:
    """An encoder that can be named.

    Attributes
    ----------
    name
        As the configuration takes it.
    licence, size
        As far as they are told.
    here
        Whether its weights are on this machine.
    how
        What to do where they are not; empty where training fetches them by itself.
    barred
        A sentence on why it cannot be used at all; empty where it can.
    """

    name: str
    licence: str = "not told"
    size: str = ""
    here: bool = True
    how: str = ""
    barred: str = ""

    @property
    def text(self) -> str:
        """One line: licence, size, where the weights are."""
        where = (
            "weights are here" if self.here else f"weights are not here; {self.how or 'fetched when training starts'}"
        )
        return self.barred or " · ".join(filter(None, (f"licence {self.licence}", self.size, where)))


def list_encoder_choices() -> tuple[EncoderChoice, ...]:
    """Return what comes with the program and what the registry lists, if that is installed; nothing is fetched."""
    return *map(_describe_shipped, shipped_bundles()), *_list_registry()


def describe_encoder(name: str) -> EncoderChoice:
    """Return what can be told of any name without loading it."""
    if name.startswith(REGISTRY_PREFIX):
        return _describe_registry_encoder(name)
    if name.startswith(HUB_PREFIX):
        here = is_in_hub_cache(name.removeprefix(HUB_PREFIX))
        return EncoderChoice(name, "as its page says", here=here)
    if name in shipped_bundles():
        return _describe_shipped(name)
    path = Path(name)
    if not name or not path.exists():
        return EncoderChoice(name, barred=f"There is no encoder '{name}' here; choose a file, or give hf:owner/name.")
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return EncoderChoice(name, "as its authors say", format_size(sum(f.stat().st_size for f in files)))


def is_in_hub_cache(repository: str) -> bool:
    """Return whether a repository's weights lie in the Hugging Face cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots"
    return (
        any(p.suffix in (".safetensors", ".bin", ".pth", ".pt") for p in folder.rglob("*"))
        if folder.exists()
        else False
    )


def _describe_shipped(name: str) -> EncoderChoice:
    from napari_lrmil.core.models.bundle import TEACHER, Bundle

    bundle = Bundle(name)
    card, file = bundle.card.teacher, bundle.path / TEACHER
    if card is None or not file.exists():
        return EncoderChoice(name, barred=f"The model {name} brings no teacher.")
    return EncoderChoice(name, card.encoder.licence, format_size(file.stat().st_size))


def _list_registry() -> list[EncoderChoice]:
    from napari_lrmil.core.encoders import foundation_cards

    try:
        return [_describe_registry_encoder(f"{REGISTRY_PREFIX}{card.name}") for card in foundation_cards()]
    except LrmilError:
        return []  # the extra is not installed: `offer_of` says so to whoever names one of its encoders


def _describe_registry_encoder(name: str) -> EncoderChoice:
    from napari_lrmil.core.encoders import foundation_card

    key, _, file = name.removeprefix(REGISTRY_PREFIX).partition("@")
    try:
        card = foundation_card(key)
    except LrmilError as error:
        return EncoderChoice(name, barred=f"{name}: {error}")
    here = Path(file).exists() if file else is_in_hub_cache(card.url.removeprefix(HUB_URL).strip("/"))
    how = f"agree to its terms at {card.url} and call `hf auth login` once" if card.gated else ""
    return EncoderChoice(name, card.licence, f"{card.parameters} parameters", here, how)
