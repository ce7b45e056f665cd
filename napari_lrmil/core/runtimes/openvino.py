"""OpenVINO runtime: encoders converted to OpenVINO models that take uint8 pixels and return embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from napari_lrmil.core.encoders import EncoderOutput
from napari_lrmil.core.encoders.huggingface import quiet_transformers
from napari_lrmil.core.errors import EncoderError
from napari_lrmil.core.features.prefetch import default_batch_size
from napari_lrmil.core.runtimes.agreement_cache import GRAPH_FILE, WEIGHTS_FILE


def is_installed() -> bool:
    """Return whether OpenVINO is installed, without importing it."""
    from importlib.util import find_spec

    return find_spec("openvino") is not None


def version() -> str:
    """Return the version of the installed OpenVINO."""
    import openvino

    return str(openvino.__version__)


def supported_precisions() -> tuple[str, ...]:
    """Return the number formats to try on this CPU, the fastest first.

    OpenVINO chooses bfloat16 by default only if the CPU computes in it natively. Emulated bfloat16 is slower.
    """
    default_hint = _core().get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
    return ("bfloat16", "float32") if default_hint == "bf16" else ("float32",)


def _core() -> Any:
    import openvino

    return openvino.Core()


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
    with TemporaryDirectory() as folder:
        write_model(Path(folder), model)
        return _core().read_model(*((Path(folder) / name).read_bytes() for name in (GRAPH_FILE, WEIGHTS_FILE)))


def compile_model(model: Any, precision: str, threads: int) -> Any:
    """Return a compiled model that runs with `threads` threads, in one stream.

    Threads are not pinned, because OpenVINO would pin those of every process to the first cores of the machine.

    Parameters
    ----------
    model
        Result of `convert_encoder` or `read_model`.
    precision
        ``bfloat16`` or ``float32``.
    threads
        Number of CPU threads.
    """
    hints: Mapping[str, Any] = {
        "INFERENCE_PRECISION_HINT": {"bfloat16": "bf16", "float32": "f32"}[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    return _core().compile_model(model, "CPU", dict(hints))


class OpenVinoEmbedder:
    """Replacement of a torch encoder: (B, 3, h, w) uint8 pixels in, embeddings out, no maps.

    The model has a fixed batch size, and the last batch is padded with zeros. The embedding of a patch therefore does
    not depend on the other patches of its batch.

    Parameters
    ----------
    compiled_model
        Result of `compile_model`; several embedders can share it.
    """

    def __init__(self, compiled_model: Any) -> None:
        self._request = compiled_model.create_infer_request()
        self._shape = tuple(compiled_model.inputs[0].shape)

    def __call__(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        """Encode a batch of any size; raise `EncoderError` if `layers` is not empty."""
        if layers:
            raise EncoderError("OpenVINO returns embeddings only; layers need --runtime torch")
        rows: NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).contiguous().numpy()
        parts = [self._encode(rows[i : i + self._shape[0]]) for i in range(0, len(rows), self._shape[0])]
        return EncoderOutput(torch.from_numpy(np.concatenate(parts)), {})

    def _encode(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the (n, D) embeddings of at most one batch of (n, h, w, 3) pixels."""
        count, batch = len(rows), self._shape[0]
        if count < batch:
            rows = np.concatenate([rows, np.zeros((batch - count, *self._shape[1:]), np.uint8)])
        outputs = self._request.infer([rows], share_inputs=True, share_outputs=True)
        return np.array(outputs[0][:count], dtype=np.float32)  # copied: the next batch overwrites the shared output


def read_model(folder: Path) -> Any | None:
    """Return the model that an earlier process stored in `folder`, or None if a file is missing or damaged."""
    try:
        return _core().read_model(folder / GRAPH_FILE, folder / WEIGHTS_FILE)
    except RuntimeError:  # what OpenVINO raises for a missing or damaged file
        return None


def write_model(folder: Path, model: Any) -> None:
    """Write a model into `folder` for later processes; raise `RuntimeError` if it cannot be written."""
    import openvino

    openvino.save_model(model, folder / GRAPH_FILE, compress_to_fp16=False)
