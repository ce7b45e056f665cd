"""One name for every kind of encoder: a file, a folder, a hub id, a foundation model of the registry."""

from __future__ import annotations

from pathlib import Path

from napari_lrmil.core.encoders.files import METADATA_KEY, LoadedEncoder, load_encoder, read_tensors
from napari_lrmil.core.encoders.foundation import PREFIX, foundation_card, load_foundation
from napari_lrmil.core.encoders.named import NAMED, fresh
from napari_lrmil.core.encoders.published import CONFIG, HUB, hub_notice, load_from_hub, load_published, untrained
from napari_lrmil.core.errors import EncoderError

KINDS = (
    "a .safetensors file, the folder of a model with config.json, a configuration (.json, .yaml) for random weights, "
    f"{', '.join(NAMED)} with fresh weights, "
    f"{HUB}owner/name, lazyslide:NAME (`napari-lrmil encoders` lists them), or a shipped bundle's name"
)


def encoder_at(name: str) -> LoadedEncoder | None:
    """Return the frozen encoder that a name means; None where it is no file, folder or hub id.

    Raises
    ------
    EncoderError
        Where it means one, which cannot be used.
    """
    if name.startswith(HUB):
        return load_from_hub(name)
    if name.startswith(PREFIX):
        return load_foundation(name)
    if name in NAMED:
        return fresh(name)
    path = Path(name)
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        raise EncoderError(f"{path}: a pickle, which could run code when it is read; expected {KINDS}")
    if path.is_dir() and (path / CONFIG).exists():
        return load_published(path)
    if path.suffix == ".safetensors":
        return _file(path)
    if path.suffix in (".json", ".yaml", ".yml"):
        return untrained(path)
    return None


def _file(path: Path) -> LoadedEncoder:
    described = path.is_file() and METADATA_KEY in read_tensors(path)[1]
    if not described and (path.parent / CONFIG).exists():
        return load_published(path.parent, path)
    return load_encoder(path)


def notice(name: str) -> str | None:
    """Return licence and terms of an encoder that others made, and that weights are random; None: nothing to say."""
    if name in NAMED:
        return (
            f"{name} starts with random weights and learns from the teacher alone; for weights that someone trained "
            f"give a .safetensors file, a folder with config.json, or {HUB}owner/name of a model of the family "
            f"{NAMED[name].family}"
        )
    if name.startswith(PREFIX):
        return foundation_card(name.removeprefix(PREFIX).partition("@")[0]).notice
    return hub_notice(name) if name.startswith(HUB) else None
