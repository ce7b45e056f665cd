"""Conversion of torch encoders to OpenVINO models that take uint8 pixels and return embeddings."""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from napari_lrmil.core.encoders.huggingface import quiet_transformers
from napari_lrmil.core.errors import EncoderError
from napari_lrmil.core.features.prefetch import default_batch_size
from napari_lrmil.core.telemetry import block_telemetry

block_telemetry()  # before the imports of OpenVINO below


class _PixelEncoder(nn.Module):
    """Encoder with (B, h, w, 3) uint8 input and (B, D) output.

    Pixels keep the type and the memory order in which they are read, which avoids a conversion per batch.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Tensor:
        embedding: Tensor = self.encoder(pixels.permute(0, 3, 1, 2)).embedding
        return embedding


def convert_encoder(encoder: nn.Module, side: int) -> Any:
    """Return the OpenVINO model of an encoder.

    The frontend is called directly, because `openvino.convert_model` sends telemetry.

    Parameters
    ----------
    encoder
        Network whose output has an ``embedding`` of shape (B, D).
    side
        Side of the patches, in pixels. It also fixes the batch size, see `default_batch_size`.

    Returns
    -------
    openvino.Model
        Model with one (B, side, side, 3) uint8 input.

    Raises
    ------
    EncoderError
        If the network contains an operation that OpenVINO does not support.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    shape = (default_batch_size(side), side, side, 3)
    frontend = FrontEndManager().load_by_framework("pytorch")
    try:
        with warnings.catch_warnings(), torch.no_grad(), quiet_transformers():  # tracing reads every attribute
            warnings.simplefilter("ignore")  # tracing turns sizes into constants, and here they are constant
            example = torch.zeros(shape, dtype=torch.uint8)
            options = {"check_trace": False}  # the embeddings are compared with torch later
            decoder = TorchScriptPythonDecoder(_PixelEncoder(encoder), example_input=example, trace_kwargs=options)
            model = frontend.convert(frontend.load(decoder))
        model.reshape(list(shape))
        return _as_stored(model)
    except Exception as error:  # tracing and the frontend raise many types
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise EncoderError(f"OpenVINO cannot run this encoder ({reason}); use --runtime torch") from error


def _as_stored(model: Any) -> Any:
    """Return a model after a round trip through disk.

    OpenVINO changes the graph when it saves a model. Without the round trip, the process that converts a network would
    compute other last digits than the processes that load it.
    """
    import openvino

    with TemporaryDirectory() as folder:
        graph, weights = Path(folder) / "encoder.xml", Path(folder) / "encoder.bin"
        openvino.save_model(model, graph, compress_to_fp16=False)
        return openvino.Core().read_model(graph.read_bytes(), weights.read_bytes())  # in memory: the files go
