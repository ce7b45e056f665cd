"""MobileNetV3-Large (Howard et al. 2019), because no library that we depend on has it without torchvision.

`timm` needs torchvision too, and both fail on import with a CPU build of torch (docs/explanation/decisions.md). Once
that is resolved, `timm` can replace this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from napari_lrmil.core.encoders.base import EncoderOutput, NetworkEncoder, capture_activations
from napari_lrmil.core.encoders.spec import EncoderSpec
from napari_lrmil.core.errors import EncoderError

STEM, HEAD = 16, 960  # channels of the first and of the last convolution


@dataclass(frozen=True)
class BlockSettings:
    """Settings of one inverted residual block: a row of the paper's table 1.

    Attributes
    ----------
    kernel, stride
        Kernel size and stride of the depthwise convolution.
    expanded, out
        Number of channels inside the block and after it.
    squeeze
        Whether the block has a squeeze-and-excite gate.
    hard_swish
        Whether the activation is hard swish; otherwise ReLU.
    """

    kernel: int
    expanded: int
    out: int
    squeeze: bool
    hard_swish: bool
    stride: int


LARGE = (
    BlockSettings(3, 16, 16, False, False, 1),
    BlockSettings(3, 64, 24, False, False, 2),
    BlockSettings(3, 72, 24, False, False, 1),
    BlockSettings(5, 72, 40, True, False, 2),
    BlockSettings(5, 120, 40, True, False, 1),
    BlockSettings(5, 120, 40, True, False, 1),
    BlockSettings(3, 240, 80, False, True, 2),
    BlockSettings(3, 200, 80, False, True, 1),
    BlockSettings(3, 184, 80, False, True, 1),
    BlockSettings(3, 184, 80, False, True, 1),
    BlockSettings(3, 480, 112, True, True, 1),
    BlockSettings(3, 672, 112, True, True, 1),
    BlockSettings(5, 672, 160, True, True, 2),
    BlockSettings(5, 960, 160, True, True, 1),
    BlockSettings(5, 960, 160, True, True, 1),
)


def round_channels(channels: float) -> int:
    """Return the multiple of 8 nearest to `channels`, but never less than 90 % of it."""
    near = max(8, int(channels + 4) // 8 * 8)
    return near if near >= 0.9 * channels else near + 8


def _convolution(inside: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def _normed(convolution: nn.Conv2d, activation: nn.Module | None) -> nn.Sequential:
    norm = nn.BatchNorm2d(convolution.out_channels, eps=1e-3, momentum=0.01)
    return nn.Sequential(convolution, norm, *([activation] if activation is not None else []))


class SqueezeExcite(nn.Module):
    """Squeeze-and-excite: two small layers compute a gate in 0 .. 1 per channel from the channel means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = round_channels(channels / 4)
        self.reduce, self.expand = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w), each channel multiplied by its gate."""
        means = x.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
        gate: Tensor = nn.functional.hardsigmoid(self.expand(nn.functional.relu(self.reduce(means))))
        return x * gate


class InvertedResidual(nn.Module):
    """Inverted residual block: expand, depthwise convolution, gate, project; plus the input if shapes agree."""

    def __init__(self, inside: int, row: BlockSettings) -> None:
        super().__init__()
        act: type[nn.Module] = nn.Hardswish if row.hard_swish else nn.ReLU
        wide = row.expanded
        parts: list[nn.Module] = [] if wide == inside else [_normed(_convolution(inside, wide, 1), act())]
        parts.append(_normed(_convolution(wide, wide, row.kernel, row.stride, groups=wide), act()))
        if row.squeeze:
            parts.append(SqueezeExcite(wide))
        parts.append(_normed(_convolution(wide, row.out, 1), None))
        self.parts = nn.Sequential(*parts)
        self.residual = row.stride == 1 and inside == row.out
        self.out = row.out

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out, h / stride, w / stride)."""
        projected: Tensor = self.parts(x)
        return x + projected if self.residual else projected


class MobileNetV3Large(nn.Module):
    """MobileNetV3-Large up to the last convolution, with random weights.

    Parameters
    ----------
    width
        Multiple of the paper's number of channels.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        inside = round_channels(width * STEM)
        self.stem = _normed(_convolution(3, inside, 3, stride=2), nn.Hardswish())
        blocks = []
        for row in LARGE:
            scaled = BlockSettings(
                row.kernel,
                round_channels(width * row.expanded),
                round_channels(width * row.out),
                row.squeeze,
                row.hard_swish,
                row.stride,
            )
            blocks.append(InvertedResidual(inside, scaled))
            inside = scaled.out
        self.blocks = nn.ModuleList(blocks)
        self.head = _normed(_convolution(inside, round_channels(width * HEAD), 1), nn.Hardswish())
        self.dim = round_channels(width * HEAD)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)  # by fan-in: a depthwise filter has one input channel
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the (B, D, h/32, w/32) map of (B, 3, h, w) normalised pixels."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.head(x)
        return features


class MobileNetV3Encoder(NetworkEncoder):
    """MobileNetV3-Large with maps ``block_1`` … ``block_15`` and ``head``.

    The embedding is the spatial mean of ``head``. The paper's classifier has one more layer after the mean. It serves
    the ImageNet classes and is left out.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        unknown = [name for name in spec.settings if name != "width"]
        if unknown:
            raise EncoderError(f"{spec.name}: {spec.family} has no setting {', '.join(unknown)}")
        width = spec.settings.get("width", 1.0)
        if not isinstance(width, int | float) or not 0 < width <= 4:
            raise EncoderError(f"{spec.name}: {spec.family} of width {width}; expected a number above 0, at most 4")
        network: nn.Module = MobileNetV3Large(width)
        self.net = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's own types lack it
        self.dim: int = self.net.dim
        self._set_embedding()

    @property
    def layers(self) -> dict[str, int]:
        """Names of the layers that have a map, with their widths."""
        blocks = {f"block_{i}": block.out for i, block in enumerate(self.net.blocks, start=1)}
        return blocks if isinstance(self.net.head, nn.Identity) else blocks | {"head": self.net.dim}

    def _encode(self, pixels: Tensor, layers: Sequence[str]) -> EncoderOutput:
        x = self.normalised(pixels).contiguous(memory_format=torch.channels_last)
        at = {name: self.net.blocks[int(name[6:]) - 1] for name in layers if name != "head"}
        with capture_activations(at) as maps:
            head = self.net(x)  # (B, D, h/32, w/32)
        return EncoderOutput(head.mean(dim=(2, 3)), {name: head if name == "head" else maps[name] for name in layers})

    def _end_with(self, layer: str) -> None:
        if layer != "head":
            self.net.blocks, self.net.head = self.net.blocks[: int(layer[6:])], nn.Identity()
