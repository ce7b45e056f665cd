"""Trainable architectures by family: our convolutional networks, and ViT and DINOv2 of ``transformers``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from napari_lrmil.core.encoders.base import (
    CLASS_TOKEN,
    EncoderOutput,
    NetworkEncoder,
    capture_activations,
    map_layer,
)
from napari_lrmil.core.encoders.convnext import ConvNextEncoder
from napari_lrmil.core.encoders.library import library_config
from napari_lrmil.core.encoders.mobilenet_v2 import MobileNetV2Encoder
from napari_lrmil.core.encoders.mobilenet_v3 import MobileNetV3Encoder
from napari_lrmil.core.encoders.spec import TRAINABLE, EncoderSpec
from napari_lrmil.core.errors import EncoderError
from napari_lrmil.core.heavy_imports import import_lock


class TokenEncoder(NetworkEncoder):
    """ViT (Dosovitskiy et al. 2021) or DINOv2 (Oquab et al. 2023) with maps ``block_1`` ….

    The embedding is the class token. Patches are resized to the nearest multiple of the token size. Position
    embeddings are interpolated, so a network trained on 224 px can read 64 px.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        config, self.net, blocks = _token_network(spec)
        self._blocks = f"{blocks}."
        self._count: int = config.num_hidden_layers
        self._token_px: int = config.patch_size
        # The class token and the register tokens come first and have no position.
        self._prefix_tokens = 1 + getattr(config, "num_register_tokens", 0)
        self.dim: int = config.hidden_size
        self._width: int = config.hidden_size
        self._set_embedding()

    @property
    def layers(self) -> dict[str, int]:
        """Names of the layers that have a map, with their widths."""
        return {f"block_{i}": self._width for i in range(1, self._count + 1)}

    @property
    def poolable(self) -> dict[str, int]:
        """Names of the blocks, for the mean of their patch tokens, and with ``.cls`` for their class token."""
        return self.layers | {f"{name}{CLASS_TOKEN}": width for name, width in self.layers.items()}

    def _encode(self, pixels: Tensor, layers: Sequence[str]) -> EncoderOutput:
        x = self.normalised(pixels)
        # int, because sides are tensors while the network is traced.
        rows, columns = (max(1, round(int(side) / self._token_px)) for side in x.shape[-2:])
        size = (rows * self._token_px, columns * self._token_px)
        if x.shape[-2:] != size:
            x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)
        options = {"interpolate_pos_encoding": True} if self.spec.family == "vit" else {}  # DINOv2 always interpolates
        at = {name: self.net.get_submodule(f"{self._blocks}{int(map_layer(name)[6:]) - 1}") for name in layers}
        with capture_activations(at) as tokens:
            embedding = self.net(pixel_values=x, **options).last_hidden_state[:, 0]
        return EncoderOutput(embedding, {name: self._map(name, tokens[name], rows, columns) for name in layers})

    def _map(self, name: str, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """Return the (B, D, rows, columns) map of (B, T, D) tokens without prefix, or the class token, (B, D, 1, 1)."""
        if name.endswith(CLASS_TOKEN):
            return tokens[:, 0, :, None, None]
        return tokens[:, self._prefix_tokens :].transpose(1, 2).reshape(tokens.shape[0], self._width, rows, columns)

    def _end_with(self, layer: str) -> None:
        self._count = int(layer[6:])
        del self.net.get_submodule(self._blocks.rstrip("."))[self._count :]
        self.net.layernorm = nn.Identity()  # the norm of the last block's output, in all three families


def _token_network(spec: EncoderSpec) -> tuple[Any, nn.Module, str]:
    """Return configuration, network, and the name of the module that holds its blocks."""
    import transformers

    if spec.family == "vit":
        config = library_config("ViTConfig", spec)
        return config, transformers.ViTModel(config, add_pooling_layer=False), "layers"
    kinds: dict[str, tuple[str, Any]] = {
        "dinov2": ("Dinov2Config", transformers.Dinov2Model),
        "dinov2_with_registers": ("Dinov2WithRegistersConfig", transformers.Dinov2WithRegistersModel),
    }
    config_name, kind = kinds[spec.family]
    config = library_config(config_name, spec)
    return config, kind(config), "encoder.layer"


def build_encoder(spec: EncoderSpec) -> NetworkEncoder:
    """Return an encoder of `spec` with random weights.

    Raises
    ------
    EncoderError
        If the family cannot be built here, or does not accept the settings.
    """
    with import_lock:  # transformers imports the modules of a network when its class is first named
        match spec.family:
            case "mobilenet_v2":
                return MobileNetV2Encoder(spec)
            case "mobilenet_v3_large":
                return MobileNetV3Encoder(spec)
            case "convnext":
                return ConvNextEncoder(spec)
            case "vit" | "dinov2" | "dinov2_with_registers":
                return TokenEncoder(spec)
        raise EncoderError(f"{spec.name} can be a frozen teacher only; a student is one of {', '.join(TRAINABLE)}")
