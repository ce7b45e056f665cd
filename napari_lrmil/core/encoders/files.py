"""Weights of encoders on disk: safetensors with a description of the network, or what others wrote. Never pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from napari_lrmil.core.encoders.families import build_encoder
from napari_lrmil.core.encoders.folded import folded_mobilenet
from napari_lrmil.core.encoders.network import NetworkEncoder
from napari_lrmil.core.encoders.spec import EncoderSpec
from napari_lrmil.core.encoders.weights import file_sha256, half_tensors, load_weights
from napari_lrmil.core.errors import EncoderError
from napari_lrmil.core.files import whole

METADATA_KEY = "lrmil_encoder"


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder in evaluation mode with its weights, and the hash that tells them from others."""

    encoder: NetworkEncoder
    sha256: str
    spec: EncoderSpec = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", self.encoder.spec)
        self.encoder.eval().requires_grad_(False)


def load_encoder(path: str | Path) -> LoadedEncoder:
    """Return the encoder stored in a safetensors file, frozen and in evaluation mode.

    Files written by `save_encoder` carry their own description. A MobileNetV2 with batch norm folded into its
    convolutions (tensors ``stem``, ``blocks.i.j``, ``head``) is read too.

    Raises
    ------
    EncoderError
        Where the file is missing, not safetensors, or its tensors fit no encoder that we know.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    described = metadata.get(METADATA_KEY)
    encoder = _described(path, described, tensors) if described else folded_mobilenet(path, tensors)
    return LoadedEncoder(encoder, file_sha256(path))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a safetensors file; raises `EncoderError` where it is none."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise EncoderError(f"{path}: no such encoder; expected a .safetensors file with weights")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no dict)
    except SafetensorError as error:
        raise EncoderError(f"{path}: not a safetensors file ({error}); expected encoder weights") from error


def save_encoder(path: Path, encoder: NetworkEncoder) -> None:
    """Write weights (float16) and description to one safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    with whole(path) as partial:
        save_file(half_tensors(encoder), partial, metadata={METADATA_KEY: json.dumps(asdict(encoder.spec))})


def _described(path: Path, described: str, tensors: dict[str, Tensor]) -> NetworkEncoder:
    try:
        told = json.loads(described)
        for name in ("mean", "deviation"):  # JSON knows no tuples
            told[name] = tuple(told[name])
        encoder = build_encoder(EncoderSpec(**told))
        load_weights(encoder, tensors)
    except (TypeError, ValueError, KeyError, EncoderError) as error:
        raise EncoderError(f"{path}: the file's description of its encoder cannot be used ({error})") from error
    return encoder
