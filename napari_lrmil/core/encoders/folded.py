"""MobileNetV2 as it is often shared: batch norm folded into the convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from napari_lrmil.core.encoders.families import MobileNetV2Encoder
from napari_lrmil.core.encoders.spec import EncoderSpec
from napari_lrmil.core.encoders.weights import load_weights
from napari_lrmil.core.errors import EncoderError


def folded_mobilenet(path: Path, tensors: dict[str, Tensor]) -> MobileNetV2Encoder:
    """Return MobileNetV2 from convolutions with batch norm folded in: the batch norm left in place does nothing.

    Raises
    ------
    EncoderError
        Where the tensors are not those of such a network.
    """
    encoder = MobileNetV2Encoder(EncoderSpec(name=path.stem, licence="see the source of the weights"))
    names = dict(_names(len(encoder.net.layer)))
    if set(tensors) != {f"{name}.{part}" for name in names for part in ("weight", "bias")}:
        found = ", ".join(sorted(tensors)[:3])
        raise EncoderError(
            f"{path}: nothing says which network holds the tensors {found} …; "
            "expected an encoder that this program wrote, or the folder of a model with its config.json"
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


def _names(blocks: int) -> list[tuple[str, str]]:
    """Return (name in the folded file, name in ``transformers``) of every convolution."""
    names = [
        ("stem", "conv_stem.first_conv"),
        ("blocks.0.0", "conv_stem.conv_3x3"),
        ("blocks.0.1", "conv_stem.reduce_1x1"),
    ]
    parts = ("expand_1x1", "conv_3x3", "reduce_1x1")
    names += [(f"blocks.{i + 1}.{j}", f"layer.{i}.{part}") for i in range(blocks) for j, part in enumerate(parts)]
    return [*names, ("head", "conv_1x1")]
