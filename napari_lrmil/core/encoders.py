"""Encoders: pixels in, a pooled embedding and spatial maps at named layers out, normalisation inside."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from napari_lrmil.core.errors import EncoderError
from napari_lrmil.core.files import whole

METADATA_KEY = "lrmil_encoder"
FAMILY = "mobilenet_v2"


@dataclass(frozen=True)
class Encoded:
    """What an encoder says of a batch.

    Attributes
    ----------
    embedding
        (B, D) pooled embedding.
    maps
        Layer name -> (B, C, h, w) spatial map, for the layers that were asked for.
    """

    embedding: Tensor
    maps: Mapping[str, Tensor]


@dataclass(frozen=True)
class EncoderSpec:
    """How to build an encoder without its weights.

    Attributes
    ----------
    family
        Architecture; MobileNetV2 is the only one so far.
    depth_multiplier
        Width of the network relative to the published one.
    wide_head
        Whether the last layer keeps its 1280 channels where the rest is narrower.
    licence
        Licence of the weights, shown in the bundle's card.
    name
        What people call these weights.
    """

    family: str = FAMILY
    depth_multiplier: float = 1.0
    wide_head: bool = True
    licence: str = "unknown"
    name: str = FAMILY

    def __post_init__(self) -> None:
        if self.family != FAMILY:
            raise EncoderError(f"unknown encoder family '{self.family}'; known: {FAMILY}")


class Encoder(Protocol):
    """Anything with a pooled embedding and spatial maps can be teacher or student."""

    spec: EncoderSpec
    dim: int

    @property
    def layers(self) -> Mapping[str, int]:
        """Names of the layers that have a map, with their widths."""
        ...

    def __call__(self, pixels: Tensor, layers: Sequence[str] = ()) -> Encoded:
        """Encode (B, 3, h, w) uint8 RGB."""
        ...


class MobileNetV2Encoder(nn.Module):
    """MobileNetV2 (Sandler et al. 2018) through ``transformers``; maps ``block_1`` … ``block_16`` and ``head``."""

    def __init__(self, spec: EncoderSpec | None = None) -> None:
        super().__init__()
        from transformers import MobileNetV2Config, MobileNetV2Model

        self.spec = spec or EncoderSpec()
        config = MobileNetV2Config(
            depth_multiplier=self.spec.depth_multiplier, finegrained_output=self.spec.wide_head, tf_padding=True
        )
        self.net = MobileNetV2Model(config, add_pooling_layer=False)
        self.dim: int = self.net.conv_1x1.convolution.out_channels

    @property
    def layers(self) -> dict[str, int]:
        """Names of the layers that have a map, with their widths."""
        ends = [block.get_submodule("reduce_1x1.convolution") for block in self.net.layer]
        widths = {f"block_{i}": end.out_channels for i, end in enumerate(ends, start=1) if isinstance(end, nn.Conv2d)}
        return widths | {"head": self.dim}

    def forward(self, pixels: Tensor, layers: Sequence[str] = ()) -> Encoded:
        """Encode (B, 3, h, w) uint8 RGB pixels.

        Raises
        ------
        EncoderError
            Where a layer does not exist.
        """
        require_layers(self, layers)
        x = pixels.float() / 127.5 - 1.0  # (B, 3, h, w) in -1 .. 1, as the published weights expect
        out = self.net(pixel_values=x, output_hidden_states=bool(layers))
        head = out.last_hidden_state  # (B, D, h/32, w/32)
        maps = {name: head if name == "head" else out.hidden_states[int(name[6:]) - 1] for name in layers}
        return Encoded(head.mean(dim=(2, 3)), maps)


class AlignedEncoder(nn.Module):
    """A student encoder whose embeddings live in the teacher's standardised space (``P(z_r)``, docs/method.md 2.3).

    Where the widths agree, `P` is the identity and the student's embedding is standardised with the teacher's training
    statistics; where they differ, a linear map carries it there.

    Parameters
    ----------
    encoder
        The student's own network.
    teacher_dim
        Width D of the teacher's embedding.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, encoder: MobileNetV2Encoder, teacher_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.dim = teacher_dim
        self.projection = nn.Identity() if encoder.dim == teacher_dim else nn.Linear(encoder.dim, teacher_dim)
        self.register_buffer("mean", torch.zeros(encoder.dim))
        self.register_buffer("deviation", torch.ones(encoder.dim))

    def set_standard(self, mean: Tensor, deviation: Tensor) -> None:
        """Standardise by the teacher's training statistics; nothing to do where a linear map learns the scale."""
        if isinstance(self.projection, nn.Identity):
            self.mean.copy_(mean)
            self.deviation.copy_(deviation)

    @property
    def spec(self) -> EncoderSpec:
        """How the student's own network is built."""
        return self.encoder.spec

    @property
    def layers(self) -> dict[str, int]:
        """Names of the layers that have a map, with their widths."""
        return self.encoder.layers

    def forward(self, pixels: Tensor, layers: Sequence[str] = ()) -> Encoded:
        """Encode (B, 3, h, w) uint8 RGB; the embedding is (B, D) in the teacher's standardised units."""
        encoded = self.encoder(pixels, layers)
        standard = (encoded.embedding - self.mean) / self.deviation
        return Encoded(self.projection(standard), encoded.maps)


def require_layers(encoder: Encoder, layers: Sequence[str]) -> None:
    """Raise `EncoderError` naming the layers that exist, where one of `layers` does not."""
    unknown = [name for name in layers if name not in encoder.layers]
    if unknown:
        raise EncoderError(
            f"no layer {', '.join(unknown)} in {encoder.spec.name}; there are: {', '.join(encoder.layers)}"
        )


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder in evaluation mode with its weights, and the hash that tells them from others."""

    encoder: MobileNetV2Encoder
    sha256: str
    spec: EncoderSpec = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", self.encoder.spec)


def build_encoder(spec: EncoderSpec) -> MobileNetV2Encoder:
    """Return an encoder of `spec` with fresh weights."""
    return MobileNetV2Encoder(spec)


def load_encoder(path: str | Path) -> LoadedEncoder:
    """Return the encoder stored in a safetensors file, frozen and in evaluation mode.

    Files written by `save_encoder` carry their own description. A MobileNetV2 with batch norm folded into its
    convolutions (tensors ``stem``, ``blocks.i.j``, ``head``) is read too.

    Raises
    ------
    EncoderError
        Where the file is missing, not safetensors, or its tensors fit no encoder that we know.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise EncoderError(f"{path}: no such encoder; expected a .safetensors file with weights")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            described = (file.metadata() or {}).get(METADATA_KEY)
    except SafetensorError as error:
        raise EncoderError(f"{path}: not a safetensors file ({error}); expected encoder weights") from error
    encoder = _described(path, described, tensors) if described else _folded(path, tensors)
    return LoadedEncoder(encoder.eval().requires_grad_(False), file_sha256(path))


def save_encoder(path: Path, encoder: MobileNetV2Encoder) -> None:
    """Write weights (float16) and description to one safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    with whole(path) as partial:
        save_file(half_tensors(encoder), partial, metadata={METADATA_KEY: json.dumps(asdict(encoder.spec))})


def round_to_half(module: nn.Module) -> None:
    """Round the weights to what float16 can hold, in place, so that a file of half the size holds exactly them."""
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half().float())


def half_tensors(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Return the weights as contiguous float16 tensors, names prefixed; call `round_to_half` before measuring."""
    state = module.state_dict().items()
    return {f"{prefix}{k}": (v.half() if v.is_floating_point() else v).cpu().clone().contiguous() for k, v in state}


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _described(path: Path, described: str, tensors: dict[str, Tensor]) -> MobileNetV2Encoder:
    try:
        encoder = build_encoder(EncoderSpec(**json.loads(described)))
        load_weights(encoder, tensors)
    except (TypeError, ValueError, EncoderError) as error:
        raise EncoderError(f"{path}: the file's description of its encoder cannot be used ({error})") from error
    return encoder


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill `module` with `tensors`, cast to its own precision; raise `EncoderError` where names or shapes differ."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if differing:
        raise EncoderError(f"the weights do not fit the network: {len(differing)} tensors differ, first {differing[0]}")
    module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})


def _folded(path: Path, tensors: dict[str, Tensor]) -> MobileNetV2Encoder:
    """Return MobileNetV2 from convolutions with batch norm folded in: the batch norm left in place does nothing."""
    encoder = MobileNetV2Encoder(EncoderSpec(name=path.stem, licence="see the source of the weights"))
    names = dict(_folded_names(len(encoder.net.layer)))
    if set(tensors) != {f"{name}.{part}" for name in names for part in ("weight", "bias")}:
        found = ", ".join(sorted(tensors)[:3])
        raise EncoderError(
            f"{path}: no known encoder holds the tensors {found} …; expected an LRMIL encoder or MobileNetV2"
        )
    state = encoder.net.state_dict()
    for source, target in names.items():
        weight, bias = tensors[f"{source}.weight"].float(), tensors[f"{source}.bias"].float()
        state.update(_convolution_alone(target, weight, bias, encoder.net.config.layer_norm_eps))
    load_weights(encoder.net, state)
    return encoder


def _convolution_alone(target: str, weight: Tensor, bias: Tensor, eps: float) -> dict[str, Any]:
    ones = torch.ones_like(bias)
    norm = {"weight": ones, "bias": bias, "running_mean": 0 * ones, "running_var": ones - eps}
    return {f"{target}.convolution.weight": weight} | {f"{target}.normalization.{k}": v for k, v in norm.items()}


def _folded_names(blocks: int) -> list[tuple[str, str]]:
    """Return (name in the folded file, name in ``transformers``) of every convolution."""
    names = [
        ("stem", "conv_stem.first_conv"),
        ("blocks.0.0", "conv_stem.conv_3x3"),
        ("blocks.0.1", "conv_stem.reduce_1x1"),
    ]
    parts = ("expand_1x1", "conv_3x3", "reduce_1x1")
    names += [(f"blocks.{i + 1}.{j}", f"layer.{i}.{part}") for i in range(blocks) for j, part in enumerate(parts)]
    return [*names, ("head", "conv_1x1")]
