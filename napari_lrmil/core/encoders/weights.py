"""Tensors of a network: rounded, checked, hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from napari_lrmil.core.errors import EncoderError


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


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill `module` with `tensors`, cast to its own precision; raise `EncoderError` where names or shapes differ."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if differing:
        raise EncoderError(f"the weights do not fit the network: {len(differing)} tensors differ, first {differing[0]}")
    module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})


def module_sha256(module: nn.Module) -> str:
    """Return a hash of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
