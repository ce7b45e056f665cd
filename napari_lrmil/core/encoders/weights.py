"""Weights of encoders: rounding, hashing, and reading and writing safetensors files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.encoders.architectures import build_encoder
from napari_lrmil.core.encoders.base import NetworkEncoder
from napari_lrmil.core.encoders.mobilenet_v2 import MobileNetV2Encoder
from napari_lrmil.core.encoders.spec import EncoderSpec
from napari_lrmil.core.errors import EncoderError
from napari_lrmil.core.hashing import file_sha256


def round_to_half(module: nn.Module) -> None:
    """Round the weights in place to values that float16 holds exactly, so that a float16 file loses nothing."""
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half().float())


def half_tensors(module: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Return the weights as contiguous float16 tensors with prefixed names.

    Call `round_to_half` before an evaluation, so that the file gives the evaluated results.
    """
    state = module.state_dict().items()
    return {f"{prefix}{k}": (v.half() if v.is_floating_point() else v).cpu().clone().contiguous() for k, v in state}


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load `tensors` into `module` as float32; raise `EncoderError` if names or shapes differ."""
    require_matching(module, tensors)
    module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})


def require_matching(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise `EncoderError` if names or shapes of `tensors` are not those of `module`."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differing = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
    if differing:
        raise EncoderError(f"the weights do not fit the network: {len(differing)} tensors differ, first {differing[0]}")


def module_sha256(module: nn.Module) -> str:
    """Return the SHA-256 of a network's tensor names and values."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_folded_mobilenet(path: Path, tensors: dict[str, Tensor]) -> MobileNetV2Encoder:
    """Return MobileNetV2 from convolutions with batch norm folded in; its batch norm layers become the identity.

    Raises
    ------
    EncoderError
        If the tensors are not those of such a network.
    """
    encoder = MobileNetV2Encoder(EncoderSpec(name=path.stem, licence="see the source of the weights"))
    names = dict(_convolution_names(len(encoder.net.layer)))
    if set(tensors) != {f"{name}.{part}" for name in names for part in ("weight", "bias")}:
        first_names = ", ".join(sorted(tensors)[:3])
        raise EncoderError(
            f"{path}: the network of the tensors {first_names} … is unknown; "
            "expected an encoder that this program wrote, or the folder of a model with its config.json"
        )
    state = encoder.net.state_dict()
    for source, target in names.items():
        weight, bias = tensors[f"{source}.weight"].float(), tensors[f"{source}.bias"].float()
        state.update(_with_identity_norm(target, weight, bias, encoder.net.settings.layer_norm_eps))
    load_weights(encoder.net, state)
    return encoder


def _with_identity_norm(target: str, weight: Tensor, bias: Tensor, eps: float) -> dict[str, Any]:
    """Return the state of a convolution and of a batch norm that only adds the bias."""
    # Batch norm divides by sqrt(variance + eps), which is 1 here.
    ones = torch.ones_like(bias)
    norm = {"weight": ones, "bias": bias, "running_mean": 0 * ones, "running_var": ones - eps}
    return {f"{target}.convolution.weight": weight} | {f"{target}.normalization.{k}": v for k, v in norm.items()}


def _convolution_names(blocks: int) -> list[tuple[str, str]]:
    """Return (name in the folded file, name in the network) of every convolution."""
    names = [
        ("stem", "conv_stem.first_conv"),
        ("blocks.0.0", "conv_stem.conv_3x3"),
        ("blocks.0.1", "conv_stem.reduce_1x1"),
    ]
    parts = ("expand_1x1", "conv_3x3", "reduce_1x1")
    names += [(f"blocks.{i + 1}.{j}", f"layer.{i}.{part}") for i in range(blocks) for j, part in enumerate(parts)]
    return [*names, ("head", "conv_1x1")]


METADATA_KEY = "lrmil_encoder"


@dataclass(frozen=True)
class LoadedEncoder:
    """Frozen encoder in evaluation mode, with the hash of its weights."""

    encoder: NetworkEncoder
    sha256: str
    spec: EncoderSpec = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", self.encoder.spec)
        self.encoder.eval().requires_grad_(False)


def load_encoder(path: str | Path) -> LoadedEncoder:
    """Return the encoder stored in a safetensors file, frozen and in evaluation mode.

    Files of `save_encoder` contain a description of the architecture. A MobileNetV2 with batch norm folded into its
    convolutions (tensors ``stem``, ``blocks.i.j``, ``head``) needs none.

    Raises
    ------
    EncoderError
        If the file is missing or not safetensors, or its tensors fit no supported encoder.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    description = metadata.get(METADATA_KEY)
    encoder = _build_described(path, description, tensors) if description else load_folded_mobilenet(path, tensors)
    return LoadedEncoder(encoder, file_sha256(path))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a safetensors file; raise `EncoderError` if it is not one."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise EncoderError(f"{path}: no such encoder; expected a .safetensors file with weights")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no dict)
    except SafetensorError as error:
        raise EncoderError(f"{path}: not a safetensors file ({error}); expected encoder weights") from error


def save_encoder(path: Path, encoder: NetworkEncoder) -> None:
    """Write float16 weights and the description of the architecture to one safetensors file, atomically."""
    from safetensors.torch import save_file

    with atomic_write(path) as partial:
        save_file(half_tensors(encoder), partial, metadata={METADATA_KEY: json.dumps(encoder.spec.stored_values())})


def _build_described(path: Path, description: str, tensors: dict[str, Tensor]) -> NetworkEncoder:
    """Return the encoder that the metadata of a file describe, with the weights of the file."""
    try:
        fields = json.loads(description)
        for name in ("mean", "deviation"):  # JSON has lists where the specification has tuples
            fields[name] = tuple(fields[name])
        fields["pooled"] = tuple(fields.get("pooled", ()))  # as "pca", a later field
        encoder = build_encoder(EncoderSpec(**fields))
        load_weights(encoder, tensors)
    except (TypeError, ValueError, KeyError, EncoderError) as error:
        raise EncoderError(f"{path}: the file's description of its encoder cannot be used ({error})") from error
    return encoder
