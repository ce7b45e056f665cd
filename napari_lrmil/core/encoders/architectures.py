"""Trainable architectures: MobileNetV2, ConvNeXt, ViT and DINOv2 of ``transformers``, and our MobileNetV3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from napari_lrmil.core.encoders.base import EncoderOutput, NetworkEncoder, capture_activations, require_layers
from napari_lrmil.core.encoders.mobilenet_v3 import MobileNetV3Encoder
from napari_lrmil.core.encoders.spec import TRAINABLE, EncoderSpec
from napari_lrmil.core.errors import EncoderError
from napari_lrmil.core.heavy_imports import import_lock


def _configured(kind: Any, spec: EncoderSpec) -> Any:
    """Return the ``transformers`` configuration of a specification; raise `EncoderError` for an unknown setting."""
    from huggingface_hub.errors import StrictDataclassError

    defaults = kind()
    unknown = [name for name in spec.settings if not hasattr(defaults, name)]
    if unknown:
        raise EncoderError(f"{spec.name}: {spec.family} has no setting {', '.join(unknown)}")
    try:
        return kind(**spec.settings)
    except (ValueError, TypeError, StrictDataclassError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise EncoderError(f"{spec.name}: the settings of {spec.family} cannot be combined ({reason})") from error


class MobileNetV2Encoder(NetworkEncoder):
    """MobileNetV2 (Sandler et al. 2018) with maps ``block_1`` … ``block_16`` and ``head``.

    The embedding is the spatial mean of ``head``.
    """

    def __init__(self, spec: EncoderSpec | None = None) -> None:
        from transformers import MobileNetV2Config, MobileNetV2Model

        super().__init__(spec or EncoderSpec())
        config = _configured(MobileNetV2Config, self.spec)
        # Channels last halves the time on a CPU; results differ by rounding only.
        self.net = MobileNetV2Model(config, add_pooling_layer=False).to(memory_format=torch.channels_last)
        self.dim: int = self.net.conv_1x1.convolution.out_channels

    @property
    def layers(self) -> dict[str, int]:
        """Names of the layers that have a map, with their widths."""
        ends = [block.reduce_1x1.convolution for block in self.net.layer]
        return {f"block_{i}": end.out_channels for i, end in enumerate(ends, start=1)} | {"head": self.dim}

    def forward(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        """Encode (B, 3, h, w) uint8 RGB pixels; see `NetworkEncoder.forward`."""
        require_layers(self, layers)
        x = self.normalised(pixels).contiguous(memory_format=torch.channels_last)
        at = {name: self.net.layer[int(name[6:]) - 1] for name in layers if name != "head"}
        with capture_activations(at) as maps:
            head = self.net(pixel_values=x).last_hidden_state  # (B, D, h/32, w/32)
        selected = {name: head if name == "head" else maps[name] for name in layers}
        return EncoderOutput(head.mean(dim=(2, 3)), selected)


class ConvNextEncoder(NetworkEncoder):
    """ConvNeXt (Liu et al. 2022) with maps ``stage_1`` … ``stage_4``.

    The embedding is the layer-normalised spatial mean of the last stage.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        from transformers import ConvNextConfig, ConvNextModel

        super().__init__(spec)
        config = _configured(ConvNextConfig, spec)
        self.net = ConvNextModel(config).to(memory_format=torch.channels_last)
        self._widths = list(config.hidden_sizes)
        # The stem and each further stage reduce the side; below this size the last map would be empty.
        self._min_side_px = config.patch_size * 2 ** (len(self._widths) - 1)
        self.dim = self._widths[-1]

    @property
    def layers(self) -> dict[str, int]:
        """Names of the layers that have a map, with their widths."""
        return {f"stage_{i}": width for i, width in enumerate(self._widths, start=1)}

    def forward(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        """Encode (B, 3, h, w) uint8 RGB pixels; see `NetworkEncoder.forward`."""
        require_layers(self, layers)
        if min(pixels.shape[-2:]) < self._min_side_px:
            height, width = pixels.shape[-2:]
            raise EncoderError(
                f"{self.spec.name} needs patches of {self._min_side_px} px or more, found {width} x {height}; "
                "set student_input_px, or use larger patches"
            )
        x = self.normalised(pixels).contiguous(memory_format=torch.channels_last)
        with capture_activations(
            {name: self.net.get_submodule(f"encoder.stages.{int(name[6:]) - 1}") for name in layers}
        ) as maps:
            embedding = self.net(pixel_values=x).pooler_output
        return EncoderOutput(embedding, {name: maps[name] for name in layers})


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

    @property
    def layers(self) -> dict[str, int]:
        """Names of the layers that have a map, with their widths."""
        return {f"block_{i}": self.dim for i in range(1, self._count + 1)}

    def forward(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        """Encode (B, 3, h, w) uint8 RGB pixels; see `NetworkEncoder.forward`."""
        require_layers(self, layers)
        x = self.normalised(pixels)
        rows, columns = (max(1, round(side / self._token_px)) for side in x.shape[-2:])
        size = (rows * self._token_px, columns * self._token_px)
        if x.shape[-2:] != size:
            x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)
        options = {"interpolate_pos_encoding": True} if self.spec.family == "vit" else {}  # DINOv2 always interpolates
        at = {name: self.net.get_submodule(f"{self._blocks}{int(name[6:]) - 1}") for name in layers}
        with capture_activations(at) as tokens:
            embedding = self.net(pixel_values=x, **options).last_hidden_state[:, 0]
        return EncoderOutput(embedding, {name: self._map(tokens[name], rows, columns) for name in layers})

    def _map(self, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """Return the (B, D, rows, columns) map of (B, T, D) tokens, without the prefix tokens."""
        return tokens[:, self._prefix_tokens :].transpose(1, 2).reshape(len(tokens), self.dim, rows, columns)


def _token_network(spec: EncoderSpec) -> tuple[Any, nn.Module, str]:
    """Return configuration, network, and the name of the module that holds its blocks."""
    import transformers as t

    if spec.family == "vit":
        config = _configured(t.ViTConfig, spec)
        return config, t.ViTModel(config, add_pooling_layer=False), "layers"
    kinds: dict[str, tuple[Any, Any]] = {
        "dinov2": (t.Dinov2Config, t.Dinov2Model),
        "dinov2_with_registers": (t.Dinov2WithRegistersConfig, t.Dinov2WithRegistersModel),
    }
    config = _configured(kinds[spec.family][0], spec)
    return config, kinds[spec.family][1](config), "encoder.layer"


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
