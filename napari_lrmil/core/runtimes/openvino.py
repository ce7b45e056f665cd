"""OpenVINO runtime: models that take uint8 pixels and return embeddings. It runs without torch.

Encoders are converted by `openvino_conversion`.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.features.bag import Features
from napari_lrmil.core.heavy_imports import import_lock
from napari_lrmil.core.runtimes.agreement_cache import MODEL_FILE
from napari_lrmil.core.telemetry import block_telemetry

block_telemetry()  # before the imports of OpenVINO below, which would send a usage report


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


def describe_cpu() -> str:
    """Return the name of the CPU and the number formats in which OpenVINO computes on it."""
    capabilities = sorted(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    return " ".join([str(_core().get_property("CPU", "FULL_DEVICE_NAME")), *capabilities])


@cache
def _core() -> Any:
    with import_lock:
        import openvino

    return openvino.Core()


def compile_model(model: Any, precision: str, threads: int) -> Any:
    """Return a compiled model that runs with `threads` threads, in one stream.

    Parameters
    ----------
    model
        Result of `convert_encoder`.
    precision
        ``bfloat16`` or ``float32``.
    threads
        Number of CPU threads.
    """
    return _core().compile_model(model, "CPU", _settings(precision, threads))


def read_compiled(folder: Path, precision: str, threads: int) -> Any | None:
    """Return the compiled model that an earlier process stored, or None if the file is missing or damaged.

    It computes the very numbers of the stored model, whatever its number of threads was, and takes a fifth of the time
    of `compile_model`. The parameters are those of `compile_model`.
    """
    try:
        stored = (folder / MODEL_FILE).read_bytes()
        return _core().import_model(stored, "CPU", _settings(precision, threads))
    except (OSError, RuntimeError):  # OpenVINO raises RuntimeError for a damaged file
        return None


def write_compiled(folder: Path, compiled_model: Any) -> None:
    """Write a compiled model into `folder` for later processes."""
    (folder / MODEL_FILE).write_bytes(compiled_model.export_model().getbuffer())


def _settings(precision: str, threads: int) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": {"bfloat16": "bf16", "float32": "f32"}[precision],
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # OpenVINO would pin the threads of every process to the same cores
    }


class OpenVinoEmbedder:
    """Encoder of patches, an `ArrayEmbedder`.

    The model has a fixed batch size, and the last batch is padded with zeros. The embedding of a patch therefore does
    not depend on the other patches of its batch.

    Parameters
    ----------
    compiled_model
        Result of `compile_model` or `read_compiled`; several embedders can share it.
    """

    def __init__(self, compiled_model: Any) -> None:
        self._request = compiled_model.create_infer_request()
        self._shape = tuple(compiled_model.inputs[0].shape)

    def embed(self, pixels: NDArray[np.uint8]) -> Features:
        """Return the (B, D) embeddings of a batch of any size, (B, h, w, 3) uint8 pixels."""
        parts = [self._encode(pixels[i : i + self._shape[0]]) for i in range(0, len(pixels), self._shape[0])]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _encode(self, rows: NDArray[np.uint8]) -> Features:
        """Return the (n, D) embeddings of at most one batch of (n, h, w, 3) pixels."""
        import openvino

        count, batch = len(rows), self._shape[0]
        if count < batch:
            rows = np.concatenate([rows, np.zeros((batch - count, *self._shape[1:]), np.uint8)])
        # Tensors are set by hand: dispatching them takes OpenVINO's `infer` 30 µs a call, 4 % of a small network.
        rows = np.require(rows, requirements=["C", "W"])  # what a tensor that shares memory needs
        self._request.set_input_tensor(openvino.Tensor(rows, shared_memory=True))
        self._request.infer(share_outputs=True)
        embeddings = self._request.get_output_tensor().data[:count]
        return np.array(embeddings, dtype=np.float32)  # copied: the next batch overwrites the output
