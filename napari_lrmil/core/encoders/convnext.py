"""ConvNeXt (Liu et al. 2022) with the settings, tensor names and initial weights of ``transformers``.

The library takes three CPU-seconds to import, see `library`. It stays the reference in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from napari_lrmil.core.encoders.base import EncoderOutput, NetworkEncoder, capture_activations
from napari_lrmil.core.encoders.library import LibrarySettings, build_activation, initialise_weights, settings_error
from napari_lrmil.core.encoders.spec import EncoderSpec
from napari_lrmil.core.errors import EncoderError

NORM_EPS = 1e-6  # of all norms but the last, whose constant is a setting


@dataclass(frozen=True)
class ConvNextSettings(LibrarySettings):
    """Settings of ConvNeXt.

    Attributes
    ----------
    patch_size
        Side and stride of the first convolution, in pixels.
    num_stages
        Number of stages. Each stage after the first halves the sides.
    hidden_sizes, depths
        Channels and number of blocks of each stage.
    hidden_act
        Activation function.
    layer_norm_eps
        Constant that the last norm adds to the variance.
    layer_scale_init_value
        Initial factor of each block's channels; 0 for no factors.
    drop_path_rate
        Probability that training leaves out the last block; earlier blocks have smaller ones.
    """

    config_name = "ConvNextConfig"
    patch_size: int = 4
    num_stages: int = 4
    hidden_sizes: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    layer_scale_init_value: float = 1e-6
    drop_path_rate: float | int = 0.0


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, h, w) maps."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w) normalised maps."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PatchEmbedding(nn.Module):
    """First convolution, whose patches do not overlap, and a norm."""

    def __init__(self, settings: ConvNextSettings) -> None:
        super().__init__()
        out, side = settings.hidden_sizes[0], settings.patch_size
        self.patch_embeddings = nn.Conv2d(settings.num_channels, out, side, side)
        self.layernorm = ChannelNorm(out, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Return the (B, C, h / patch_size, w / patch_size) map of (B, 3, h, w) normalised pixels."""
        embedded: Tensor = self.layernorm(self.patch_embeddings(x))
        return embedded


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, a block's output is dropped for some images of a batch."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w), zero for dropped images, and scaled so that the mean over many batches stays."""
        if not self.training:
            return x
        keep_rate = 1 - self.rate
        chance = torch.rand((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device)
        return x.div(keep_rate) * torch.floor(chance + keep_rate)


class ConvNextBlock(nn.Module):
    """ConvNeXt block: depthwise convolution, norm, two linear layers per pixel, and factors; added to the input."""

    def __init__(self, spec: EncoderSpec, settings: ConvNextSettings, width: int, drop_rate: float) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.layernorm = nn.LayerNorm(width, eps=NORM_EPS)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.act = build_activation(settings.hidden_act, spec)
        self.pwconv2 = nn.Linear(4 * width, width)
        scale = settings.layer_scale_init_value
        self.layer_scale_parameter = nn.Parameter(torch.full((width,), scale)) if scale > 0 else None
        self.drop_path = DropPath(drop_rate) if drop_rate > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, h, w)."""
        y = self.dwconv(x).permute(0, 2, 3, 1)  # (B, h, w, C)
        y = self.pwconv2(self.act(self.pwconv1(self.layernorm(y))))
        if self.layer_scale_parameter is not None:
            y = self.layer_scale_parameter * y
        summed: Tensor = x + self.drop_path(y.permute(0, 3, 1, 2))
        return summed


class ConvNextStage(nn.Module):
    """Blocks of one width. A norm and a convolution before them change width and size, except in the first stage."""

    def __init__(
        self, spec: EncoderSpec, settings: ConvNextSettings, inside: int | None, out: int, drop_rates: Sequence[float]
    ) -> None:
        super().__init__()
        reduction = [] if inside is None else [ChannelNorm(inside, eps=NORM_EPS), nn.Conv2d(inside, out, 2, 2)]
        self.downsampling_layer = nn.ModuleList(reduction)
        self.layers = nn.ModuleList(ConvNextBlock(spec, settings, out, rate) for rate in drop_rates)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, out, h / 2, w / 2); the first stage keeps the size."""
        for layer in (*self.downsampling_layer, *self.layers):
            x = layer(x)
        return x


class ConvNextStages(nn.Module):
    """All stages, one after another."""

    def __init__(self, spec: EncoderSpec, settings: ConvNextSettings) -> None:
        super().__init__()
        depths, widths = list(settings.depths), settings.hidden_sizes
        all_rates = torch.linspace(0, settings.drop_path_rate, sum(depths), device="cpu")
        rates = torch.split(all_rates, depths)
        before = (None, *widths)
        self.stages = nn.ModuleList(
            ConvNextStage(spec, settings, before[i], width, rates[i].tolist()) for i, width in enumerate(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the map of the last stage."""
        for stage in self.stages:
            x = stage(x)
        return x


class ConvNext(nn.Module):
    """ConvNeXt with a norm after the spatial mean and without a classifier, with random weights.

    Parameters
    ----------
    spec
        Architecture of the network.

    Raises
    ------
    EncoderError
        If the settings are not those of a ConvNeXt.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.settings = settings = ConvNextSettings.from_spec(spec)
        if not len(settings.depths) == len(settings.hidden_sizes) == settings.num_stages:
            counts = f"{len(settings.depths)} depths, {len(settings.hidden_sizes)} hidden_sizes"
            raise settings_error(spec, f"{counts} and num_stages={settings.num_stages}; expected equal numbers")
        self.dim = settings.hidden_sizes[-1]
        self.embeddings = PatchEmbedding(settings)
        self.encoder = ConvNextStages(spec, settings)
        # The library draws the stages' weights first. The order decides which weights a seed gives.
        initialise_weights(self.encoder, settings.initializer_range)
        self.layernorm = nn.LayerNorm(self.dim, eps=settings.layer_norm_eps)
        initialise_weights(self.embeddings, settings.initializer_range)

    def forward(self, x: Tensor) -> Tensor:
        """Return the (B, D) embeddings of (B, 3, h, w) normalised pixels."""
        embeddings: Tensor = self.layernorm(self.encoder(self.embeddings(x)).mean(dim=(2, 3)))
        return embeddings


class ConvNextEncoder(NetworkEncoder):
    """ConvNeXt with maps ``stage_1`` … ``stage_4``.

    The embedding is the layer-normalised spatial mean of the last stage.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__(spec)
        network: nn.Module = ConvNext(spec)
        self.net = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's own types lack it
        self._widths: list[int] = list(self.net.settings.hidden_sizes)
        # The stem and each further stage reduce the side; below this size the last map would be empty.
        self._min_side_px = max(self.net.embeddings.patch_embeddings.stride) * 2 ** (len(self._widths) - 1)
        self.dim: int = self.net.dim
        self._set_embedding()

    @property
    def layers(self) -> dict[str, int]:
        """Names of the layers that have a map, with their widths."""
        return {f"stage_{i}": width for i, width in enumerate(self._widths, start=1)}

    def _encode(self, pixels: Tensor, layers: Sequence[str]) -> EncoderOutput:
        if min(pixels.shape[-2:]) < self._min_side_px:
            height, width = pixels.shape[-2:]
            raise EncoderError(
                f"{self.spec.name} needs patches of {self._min_side_px} px or more, found {width} x {height}; "
                "set student_input_px, or use larger patches"
            )
        x = self.normalised(pixels).contiguous(memory_format=torch.channels_last)
        with capture_activations({name: self.net.encoder.stages[int(name[6:]) - 1] for name in layers}) as maps:
            embedding = self.net(x)
        return EncoderOutput(embedding, {name: maps[name] for name in layers})

    def _end_with(self, layer: str) -> None:
        last = int(layer[6:])
        self.net.encoder.stages, self.net.layernorm = self.net.encoder.stages[:last], nn.Identity()
        self._widths = self._widths[:last]
