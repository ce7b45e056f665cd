"""An encoder converted for OpenVINO: bytes in, embeddings out."""

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
    """Return whether OpenVINO is here, without loading it."""
    from importlib.util import find_spec

    return find_spec("openvino") is not None


def version() -> str:
    """Return the version of OpenVINO."""
    import openvino

    return str(openvino.__version__)


def supported_precisions() -> tuple[str, ...]:
    """Return the number formats to try on this CPU, the fastest first.

    OpenVINO's own choice tells whether the CPU multiplies bfloat16: elsewhere it is emulated, and slower.
    """
    own = _core().get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
    return ("bfloat16", "float32") if own == "bf16" else ("float32",)


def _core() -> Any:
    import openvino

    return openvino.Core()


class _Pixels(nn.Module):
    """(B, h, w, 3) uint8 in, (B, D) embedding out: bytes travel, in the order in which they are read."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.encoder(pixels.permute(0, 3, 1, 2)).embedding
        return found


def convert_encoder(encoder: nn.Module, side: int) -> Any:
    """Return the OpenVINO model of an encoder for as many patches of `side` pixels as are best `default_batch_size`.

    The frontend is called by itself: `openvino.convert_model` reports home what it converts.

    Raises
    ------
    EncoderError
        Where the network holds something that OpenVINO does not know.
    """
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    shape = (default_batch_size(side), side, side, 3)
    frontend = FrontEndManager().load_by_framework("pytorch")
    try:
        with warnings.catch_warnings(), torch.no_grad(), quiet_transformers():  # tracing touches all that a network has
            warnings.simplefilter("ignore")  # of tracing: sizes become constants, which they are here
            example = torch.zeros(shape, dtype=torch.uint8)
            once = {"check_trace": False}  # we compare the result ourselves
            decoder = TorchScriptPythonDecoder(_Pixels(encoder), example_input=example, trace_kwargs=once)
            model = frontend.convert(frontend.load(decoder))
        model.reshape(list(shape))
        return _as_stored(model)
    except Exception as error:  # whatever tracing and the frontend raise
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise EncoderError(f"OpenVINO cannot run this encoder ({reason}); use --runtime torch") from error


def _as_stored(model: Any) -> Any:
    """Return a model as it comes back from disk, where its graph is another: every process computes the same."""
    with TemporaryDirectory() as folder:
        write_model(Path(folder), model)
        return _core().read_model(*((Path(folder) / name).read_bytes() for name in (GRAPH_FILE, WEIGHTS_FILE)))


def compile_model(model: Any, precision: str, threads: int) -> Any:
    """Return a model ready to run with `threads` threads, in one stream.

    Threads are not pinned: several processes on a machine would all be pinned to its first cores.
    """
    hints: Mapping[str, Any] = {
        "INFERENCE_PRECISION_HINT": {"bfloat16": "bf16", "float32": "f32"}[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    return _core().compile_model(model, "CPU", dict(hints))


class OpenVinoEmbedder:
    """What `embed` calls in place of a torch encoder: (B, 3, h, w) uint8 in, embeddings out, no maps.

    The batch is fixed, and the last one is filled up: a patch embeds to the same numbers whatever lies beside it.

    Parameters
    ----------
    ready
        A compiled model; several embedders may share it.
    """

    def __init__(self, ready: Any) -> None:
        self._request = ready.create_infer_request()
        self._shape = tuple(ready.inputs[0].shape)

    def __call__(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        """Encode a batch of any size; raises `EncoderError` where layers are asked for."""
        if layers:
            raise EncoderError("OpenVINO gives embeddings alone; layers need --runtime torch")
        rows: NDArray[np.uint8] = pixels.permute(0, 2, 3, 1).contiguous().numpy()
        parts = [self._encoded(rows[i : i + self._shape[0]]) for i in range(0, len(rows), self._shape[0])]
        return EncoderOutput(torch.from_numpy(np.concatenate(parts)), {})

    def _encoded(self, rows: NDArray[np.uint8]) -> NDArray[np.float32]:
        count, whole = len(rows), self._shape[0]
        if count < whole:
            rows = np.concatenate([rows, np.zeros((whole - count, *self._shape[1:]), np.uint8)])
        found = self._request.infer([rows], share_inputs=True, share_outputs=True)
        return np.array(found[0][:count], dtype=np.float32)  # a copy: the next batch writes where this one lies


def read_model(folder: Path) -> Any | None:
    """Return the model that an earlier process left; None where there is nothing whole."""
    try:
        return _core().read_model(folder / GRAPH_FILE, folder / WEIGHTS_FILE)
    except RuntimeError:  # OpenVINO's, for a file that is missing or broken
        return None


def write_model(folder: Path, model: Any) -> None:
    """Leave a model for later processes; raises `RuntimeError` where it cannot be written."""
    import openvino

    openvino.save_model(model, folder / GRAPH_FILE, compress_to_fp16=False)
