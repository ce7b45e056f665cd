"""HR features of benchmarks/real_tissue.py by OpenVINO: four times as fast as torch, and equal to a millionth.

A training encodes with torch, whose numbers its checkpoints depend on. Here the features are made before the training,
which finds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from napari_lrmil.core.encoders.base import EncoderOutput
from napari_lrmil.core.telemetry import block_telemetry

block_telemetry()  # before the import of OpenVINO below


class _Pooled(nn.Module):
    """Network with the embedding and the pooled maps of some layers in one (B, D) output."""

    def __init__(self, encoder: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.encoder, self.layers = encoder, tuple(layers)

    def forward(self, pixels: Tensor) -> Tensor:
        output = self.encoder(pixels, self.layers)
        return torch.cat([output.embedding, *(output.maps[name].mean(dim=(2, 3)) for name in self.layers)], dim=1)


class OpenVinoEncoder:
    """Encoder that OpenVINO runs in float32 on one thread; the maps it returns are pooled, (B, C, 1, 1).

    Parameters
    ----------
    encoder
        The torch encoder.
    layers
        The layers that it is asked for.
    side
        Side of the patches in pixels.
    """

    def __init__(self, encoder: Any, layers: Sequence[str], side: int) -> None:
        import openvino

        self.layers, widths = tuple(layers), [encoder.dim, *(encoder.layers[name] for name in layers)]
        self._widths = widths
        network, example = _Pooled(encoder.eval(), layers).eval(), torch.zeros(2, 3, side, side, dtype=torch.uint8)
        with torch.no_grad():
            model = openvino.convert_model(network, example_input=example, input=[-1, 3, side, side])
        settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
        self._compiled = openvino.Core().compile_model(model, "CPU", settings)

    def __call__(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        """Encode (B, 3, h, w) uint8 pixels; raises ValueError for layers that it was not made for."""
        if not set(layers) <= set(self.layers):
            raise ValueError(f"layers {', '.join(layers)} asked for, made for {', '.join(self.layers)}")
        joined = torch.from_numpy(self._compiled(pixels.contiguous().numpy())[0])
        embedding, *pooled = joined.split(self._widths, dim=1)
        maps = {name: part[:, :, None, None] for name, part in zip(self.layers, pooled, strict=True)}
        return EncoderOutput(embedding, {name: maps[name] for name in layers})
