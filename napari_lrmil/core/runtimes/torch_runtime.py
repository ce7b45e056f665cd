"""Torch as a fast runtime: folded batch norm, bfloat16, and what the device computes in natively."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from napari_lrmil.core.encoders.base import EncoderOutput
from napari_lrmil.core.encoders.spec import CONVOLUTIONAL
from napari_lrmil.core.features.devices import device_type
from napari_lrmil.core.features.torch_encoding import Embedder
from napari_lrmil.core.runtimes.optimize import fold_batch_norm, round_weights_to_bfloat16


def describe_processor(device: str | torch.device) -> str:
    """Return the name of a CUDA device, or the name and instruction sets of the CPU."""
    if device_type(device) == "cuda":
        return torch.cuda.get_device_name(device)
    capabilities = _cpu_capabilities()
    instruction_sets = sorted(name for name, is_present in capabilities.items() if is_present is True)
    return " ".join([str(capabilities.get("cpu_name", "")), *instruction_sets])


def _cpu_capabilities() -> dict[str, Any]:
    """Return what torch knows of the CPU; nothing before torch 2.13."""
    query = getattr(torch.cpu, "get_capabilities", dict)
    return dict(query())


def has_native_bfloat16(device: str | torch.device) -> bool:
    """Return whether a CPU or CUDA device computes in bfloat16 natively; emulation is slower than float32."""
    if device_type(device) == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(is_present for name, is_present in _cpu_capabilities().items() if "bf16" in name)


def torch_embedder(encoder: Any, precision: str, device: str | torch.device) -> Embedder:
    """Return an encoder that computes in ``float32`` or ``bfloat16``."""
    embedder: Embedder = encoder
    if precision == "float32":
        return embedder
    # Compensated rounding helps spatial filters only. Token networks have none, and a copy of one can be very large.
    is_convolutional = encoder.spec.family in CONVOLUTIONAL
    return Bfloat16Embedder(round_weights_to_bfloat16(encoder) if is_convolutional else encoder, device)


def fold_if_normed(encoder: Any) -> Any:
    """Return the encoder with folded batch norm, or the encoder itself if it has no batch norm."""
    has_batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
    return fold_batch_norm(encoder) if has_batch_norm else encoder


class Bfloat16Embedder:
    """Torch encoder under bfloat16 autocast, which keeps sensitive layers in float32; embeddings are float32.

    Parameters
    ----------
    encoder
        Encoder on the device.
    device
        CUDA device or CPU.
    """

    def __init__(self, encoder: Embedder, device: str | torch.device) -> None:
        self._encoder, self._device = encoder, device

    def __call__(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        """Encode a (B, 3, h, w) uint8 batch."""
        with torch.autocast(device_type(self._device), torch.bfloat16):
            output = self._encoder(pixels, layers)
        return EncoderOutput(output.embedding.float(), output.maps)
