"""MobileNetV2 (Sandler et al. 2018) with the settings, tensor names and initial weights of ``transformers``.

The library takes three CPU-seconds to import, see `library`. It stays the reference in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from napari_lrmil.core.encoders.base import EncoderOutput, NetworkEncoder, capture_activations
from napari_lrmil.core.encoders.library import LibrarySettings, build_activation, initialise_weights
from napari_lrmil.core.encoders.spec import EncoderSpec

STEM, STEM_OUT, HEAD = 32, 16, 1280  # channels of the first convolution, of the stem's output, and of the last one
# Channels and stride of the blocks after the stem: the rows of the paper's table 2, repeated.
BLOCKS = (
    *((24, 2), (24, 1)),
    *((32, 2), (32, 1), (32, 1)),
    *((64, 2), (64, 1), (64, 1), (64, 1)),
    *((96, 1), (96, 1), (96, 1)),
    *((160, 2), (160, 1), (160, 1)),
    (320, 1),
)


@dataclass(frozen=True)
class MobileNetV2Settings(LibrarySettings):
    """Settings of MobileNetV2.

    Attributes
    ----------
    depth_multiplier
        Multiple of the paper's number of channels.
    depth_divisible_by, min_depth
        Numbers of channels are multiples of the first and at least the second.
    expand_ratio
        Channels inside a block, as a multiple of those before it.
    output_stride
        Side of the input over that of the last map, at most. Later blocks are dilated instead of strided.
    first_layer_is_expansion
        Whether the stem has no further expansion after its first convolution.
    finegrained_output
        Whether the last convolution keeps its 1280 channels if `depth_multiplier` is below 1.
    hidden_act
        Activation function.
    tf_padding
        Whether padding is that of TensorFlow, which depends on the size of the map.
    layer_norm_eps
        Constant that batch norm adds to the variance.
    classifier_dropout_prob, semantic_loss_ignore_index
        Settings of heads, which have no effect here. Published configurations contain them.
    """

    config_name = "MobileNetV2Config"
    depth_multiplier: float | int = 1.0
    depth_divisible_by: int = 8
    min_depth: int = 8
    expand_ratio: float | int = 6.0
    output_stride: int = 32
    first_layer_is_expansion: bool = True
    finegrained_output: bool = True
    hidden_act: str = "relu6"
    tf_padding: bool = True
    layer_norm_eps: float = 0.001
    classifier_dropout_prob: float | int = 0.8
    semantic_loss_ignore_index: int = 255

    def scaled(self, channels: float, factor: float) -> int:
        """Return the permitted number of channels next to `channels` times `factor`."""
        wanted, divisor = round(channels * factor), self.depth_divisible_by
        near = max(self.min_depth, int(wanted + divisor / 2) // divisor * divisor)
        return near if near >= 0.9 * wanted else near + divisor


class ConvolutionLayer(nn.Module):
    """Convolution, batch norm, and the activation unless the layer is linear."""

    def __init__(
        self,
        spec: EncoderSpec,
        settings: MobileNetV2Settings,
        inside: int,
        out: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        is_linear: bool = False,
    ) -> None:
        super().__init__()
        self.pads_as_tensorflow = settings.tf_padding
        padding = 0 if settings.tf_padding else kernel // 2 * dilation
        self.convolution = nn.Conv2d(
            inside, out, kernel, stride, padding=padding, dilation=dilation, groups=groups, bias=False
        )
        self.normalization = nn.BatchNorm2d(out, eps=settings.layer_norm_eps, momentum=0.997)
        self.activation = None if is_linear else build_activation(settings.hidden_act, spec)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out, h / stride, w / stride), rounded up."""
        if self.pads_as_tensorflow:
            x = pad_as_tensorflow(x, self.convolution)
        x = self.normalization(self.convolution(x))
        return x if self.activation is None else self.activation(x)


def pad_as_tensorflow(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    """Return (B, C, h, w) maps padded so that a convolution divides their sides by its stride, rounded up.

    An odd row or column of padding is at the bottom or at the right.
    """
    padding: list[int] = []
    for axis in (1, 0):  # torch's padding begins with the last axis
        kernel, stride, dilation = (
            c[axis] for c in (convolution.kernel_size, convolution.stride, convolution.dilation)
        )
        side = int(x.shape[2 + axis])
        total = max(kernel - (side % stride or stride), 0)
        before = total // 2
        padding += [before * dilation, (total - before) * dilation]
    return nn.functional.pad(x, padding) if any(padding) else x


class ExpandedBlock(nn.Module):
    """Inverted residual block: expand, depthwise convolution, project; plus the input if shapes agree."""

    def __init__(
        self, spec: EncoderSpec, settings: MobileNetV2Settings, inside: int, out: int, stride: int, dilation: int
    ) -> None:
        super().__init__()
        wide = settings.scaled(inside, settings.expand_ratio)
        self.residual = stride == 1 and inside == out
        self.expand_1x1 = ConvolutionLayer(spec, settings, inside, wide)
        self.conv_3x3 = ConvolutionLayer(
            spec, settings, wide, wide, kernel=3, stride=stride, groups=wide, dilation=dilation
        )
        self.reduce_1x1 = ConvolutionLayer(spec, settings, wide, out, is_linear=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out, h / stride, w / stride), rounded up."""
        projected: Tensor = self.reduce_1x1(self.conv_3x3(self.expand_1x1(x)))
        return x + projected if self.residual else projected


class Stem(nn.Module):
    """First convolution, which halves the sides, and a block without expansion."""

    def __init__(self, spec: EncoderSpec, settings: MobileNetV2Settings, wide: int, out: int) -> None:
        super().__init__()
        self.first_conv = ConvolutionLayer(spec, settings, settings.num_channels, wide, kernel=3, stride=2)
        expands = not settings.first_layer_is_expansion
        self.expand_1x1 = ConvolutionLayer(spec, settings, wide, wide) if expands else None
        self.conv_3x3 = ConvolutionLayer(spec, settings, wide, wide, kernel=3, groups=wide)
        self.reduce_1x1 = ConvolutionLayer(spec, settings, wide, out, is_linear=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out, h / 2, w / 2), rounded up."""
        x = self.first_conv(x)
        if self.expand_1x1 is not None:
            x = self.expand_1x1(x)
        projected: Tensor = self.reduce_1x1(self.conv_3x3(x))
        return projected


class MobileNetV2(nn.Module):
    """MobileNetV2 up to the last convolution, with random weights.

    Parameters
    ----------
    spec
        Architecture of the network.

    Raises
    ------
    EncoderError
        If the settings are not those of a MobileNetV2.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        settings = MobileNetV2Settings.from_spec(spec)
        self.settings, width = settings, settings.depth_multiplier
        inside = settings.scaled(STEM_OUT, width)
        self.conv_stem = Stem(spec, settings, settings.scaled(STEM, width), inside)
        self.layer = nn.ModuleList()
        for channels, stride, dilation in _strided_rows(settings.output_stride):
            out = settings.scaled(channels, width)
            self.layer.append(ExpandedBlock(spec, settings, inside, out, stride, dilation))
            inside = out
        keeps_head = settings.finegrained_output and width < 1
        self.dim = HEAD if keeps_head else settings.scaled(HEAD, width)
        self.conv_1x1 = ConvolutionLayer(spec, settings, inside, self.dim)
        initialise_weights(self, settings.initializer_range)

    def forward(self, x: Tensor) -> Tensor:
        """Return the (B, D, h/32, w/32) map of (B, 3, h, w) normalised pixels."""
        x = self.conv_stem(x)
        for block in self.layer:
            x = block(x)
        features: Tensor = self.conv_1x1(x)
        return features


def _strided_rows(output_stride: int) -> list[tuple[int, int, int]]:
    """Return channels, stride and dilation of each block, so that all strides multiply to `output_stride` at most."""
    rows, reached, dilation = [], 2, 1  # the stem has a stride of 2
    for channels, stride in BLOCKS:
        if reached == output_stride:
            rows.append((channels, 1, dilation))
            dilation *= stride  # the next block makes up for the stride that this one leaves out
        else:
            rows.append((channels, stride, 1))
            reached *= stride
    return rows


class MobileNetV2Encoder(NetworkEncoder):
    """MobileNetV2 with maps ``block_1`` … ``block_16`` and ``head``.

    The embedding is the spatial mean of ``head``.
    """

    def __init__(self, spec: EncoderSpec | None = None) -> None:
        super().__init__(spec or EncoderSpec())
        network: nn.Module = MobileNetV2(self.spec)
        # Channels last halves the time on a CPU; results differ by rounding only.
        self.net = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's own types lack it
        self.dim: int = self.net.dim
        self._set_embedding()

    @property
    def layers(self) -> dict[str, int]:
        """Names of the layers that have a map, with their widths."""
        ends = [block.reduce_1x1.convolution for block in self.net.layer]
        blocks = {f"block_{i}": end.out_channels for i, end in enumerate(ends, start=1)}
        return blocks if isinstance(self.net.conv_1x1, nn.Identity) else blocks | {"head": self.net.dim}

    def _encode(self, pixels: Tensor, layers: Sequence[str]) -> EncoderOutput:
        x = self.normalised(pixels).contiguous(memory_format=torch.channels_last)
        at = {name: self.net.layer[int(name[6:]) - 1] for name in layers if name != "head"}
        with capture_activations(at) as maps:
            head = self.net(x)  # (B, D, h/32, w/32)
        selected = {name: head if name == "head" else maps[name] for name in layers}
        return EncoderOutput(head.mean(dim=(2, 3)), selected)

    def _end_with(self, layer: str) -> None:
        if layer != "head":
            self.net.layer, self.net.conv_1x1 = self.net.layer[: int(layer[6:])], nn.Identity()
