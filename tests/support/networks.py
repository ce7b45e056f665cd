"""Small untrained networks and bundles for tests, with fixed seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from napari_lrmil.core.encoders import (
    AlignedEncoder,
    EncoderOutput,
    EncoderSpec,
    MobileNetV2Encoder,
    NetworkEncoder,
    round_to_half,
)
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.mil import GatedAttentionMIL
from napari_lrmil.core.models.networks import StudentNetwork, TeacherNetwork, write_bundle

SMALL_SETTINGS = {"depth_multiplier": 0.25, "finegrained_output": False}
SMALL = EncoderSpec("mobilenet_v2", SMALL_SETTINGS, licence="BSD-3-Clause", name="untrained")
CLASSES = ("normal", "lesion")


def untrained_encoder(seed: int = 0) -> MobileNetV2Encoder:
    """Return a small encoder with seeded weights, in evaluation mode."""
    torch.manual_seed(seed)
    encoder = MobileNetV2Encoder(SMALL)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv2d):  # the default weights are so small that all outputs vanish
            torch.nn.init.kaiming_normal_(module.weight)
    round_to_half(encoder)
    return encoder.eval()


class Borrowed(NetworkEncoder):
    """Frozen encoder whose licence forbids redistribution, like most of the registry."""

    def __init__(self) -> None:
        super().__init__(EncoderSpec("lazyslide", {"key": "x"}, "CC-BY-NC-ND-4.0", "lazyslide:x"))
        self.own = untrained_encoder(4)
        self.net, self.dim = self.own.net, self.own.dim

    @property
    def layers(self) -> dict[str, int]:
        return {}

    def forward(self, pixels: torch.Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        with torch.inference_mode():
            embedding = self.own(pixels).embedding
        return EncoderOutput(embedding.clone(), {})


def untrained_bundle(
    folder: Path, *, teacher: bool = True, teachers: NetworkEncoder | None = None, **card: Any
) -> Bundle:
    """Write a bundle of untrained networks with patches of 128 px and return it opened."""
    encoder = untrained_encoder(1)
    student = StudentNetwork(AlignedEncoder(encoder, encoder.dim), GatedAttentionMIL(encoder.dim, 2))
    other = TeacherNetwork(teachers or untrained_encoder(2), GatedAttentionMIL(encoder.dim, 2)) if teacher else None
    for network in filter(None, (student, other)):
        round_to_half(network)
    fields = {
        "name": "untrained",
        "classes": CLASSES,
        "hr_mpp": 0.5,
        "lr_mpp": 2.0,
        "hr_patch_px": 128,
        "lr_patch_px": 128,
    }
    return write_bundle(folder, fields | card, student, other)
