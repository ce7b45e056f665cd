"""Heads as other programs save them: CLAM_SB of random weights, and a teacher of this program in torchmil's layout."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from napari_lrmil.core.models.mil import GatedAttentionMIL


def save_clam(file: Path, dim: int, classes: int = 2, seed: int = 0) -> Path:
    """Write a CLAM_SB of the published sizes but for the width of its features; return the file."""
    rng = torch.Generator().manual_seed(seed)
    layers = {
        "attention_net.0": (512, dim),
        "attention_net.3.attention_a.0": (256, 512),
        "attention_net.3.attention_b.0": (256, 512),
        "attention_net.3.attention_c": (1, 256),
        "classifiers": (classes, 512),
        **{f"instance_classifiers.{i}": (2, 512) for i in range(classes)},
    }
    weights: OrderedDict[str, Tensor] = OrderedDict()
    for name, (outputs, inputs) in layers.items():
        weights[f"{name}.weight"] = torch.randn(outputs, inputs, generator=rng) * (2 / inputs) ** 0.5
        weights[f"{name}.bias"] = 0.1 * torch.randn(outputs, generator=rng)
    torch.save(weights, file)
    return file


def save_as_torchmil(mil: GatedAttentionMIL, file: Path) -> Path:
    """Write a teacher of two classes as torchmil's ABMIL saves itself, on raw features; return the file."""
    mean, deviation = mil.mean.double(), mil.deviation.double()

    def on_raw(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        raw = weight.double() / deviation
        return raw.float(), (bias.double() - raw @ mean).float()

    w, b = mil.classifier.weight, mil.classifier.bias
    layers = {
        "pool.fc1.module": on_raw(mil.V.weight, mil.V.bias),
        "pool.fc_gated.module": on_raw(mil.U.weight, mil.U.bias),
        "classifier.module": on_raw(w[1:] - w[:1], b[1:] - b[:1]),  # torchmil has the logit of the second class alone
    }
    weights = {f"{name}.weight": pair[0] for name, pair in layers.items()}
    weights |= {f"{name}.bias": pair[1] for name, pair in layers.items()}
    torch.save(weights | {"pool.fc2.weight": mil.w.weight.clone()}, file)
    return file
