"""Encoding by torch: pixels to a device, resizing, encoders that return tensors."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_lrmil.core.encoders.base import EncoderOutput
from napari_lrmil.core.features.devices import device_type

_OUT_OF_MEMORY = (
    "MPS backend out of memory",
    "CUDA error: out of memory",  # also of memory that cannot be pinned
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


class Embedder(Protocol):
    """Callable that encodes (B, 3, h, w) uint8 pixels to `EncoderOutput`. Every encoder is one."""

    def __call__(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        """Encode a batch."""
        ...


def encode(
    encoder: Embedder,
    pixels: NDArray[np.uint8] | Tensor,
    input_px: int | None,
    device: str | torch.device,
    layers: Sequence[str] = (),
) -> EncoderOutput:
    """Encode (B, h, w, 3) uint8 pixels without gradients. The transfer to the device is in uint8."""
    tensor = pixels if isinstance(pixels, Tensor) else torch.from_numpy(pixels)
    if device_type(device) == "cuda":
        # Convolutions would otherwise round to 10 bits (TF32), and float32 is what other runtimes are compared with.
        torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode():
        batch = tensor.to(device).permute(0, 3, 1, 2)  # (B, 3, h, w)
        if device_type(device) == "cuda":
            batch = pad_batch(batch)
        output = encoder(resize_patches(batch, input_px), layers)
        count = len(tensor)
        return EncoderOutput(output.embedding[:count], {name: maps[:count] for name, maps in output.maps.items()})


def pad_batch(batch: Tensor) -> Tensor:
    """Return a (B, …) batch, filled up with zeros to the next power of two.

    cuDNN prepares its kernels for each new batch size, which took 1.5 s for MobileNetV2 on an H200. With powers of two
    there are few sizes.
    """
    missing = 2 ** (len(batch) - 1).bit_length() - len(batch)
    return torch.cat([batch, batch.new_zeros(missing, *batch.shape[1:])]) if missing else batch


def resize_patches(batch: Tensor, input_px: int | None) -> Tensor:
    """Return (B, 3, h, w) uint8 pixels, resized bilinearly to `input_px` unless that is None."""
    if input_px is None or batch.shape[-1] == input_px:
        return batch
    size = (input_px, input_px)
    resized = torch.nn.functional.interpolate(batch.float(), size=size, mode="bilinear", align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)


def to_numpy(tensor: Tensor) -> NDArray[np.float32]:
    """Return a tensor as a float32 array in main memory."""
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports that device memory ran out. Some parts of torch report it only in the message."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)


@dataclass(frozen=True)
class _Sent:
    """Pixels in transfer to the device. `ready` is the CUDA event of their arrival, or None if they have arrived."""

    pixels: Tensor
    seconds: float
    ready: Any = None

    def arrived(self) -> Tensor:
        """Return the pixels for the current CUDA stream. The stream waits for the transfer, this thread does not."""
        if self.ready is not None:
            stream = torch.cuda.current_stream(self.pixels.device)
            stream.wait_event(self.ready)
            self.pixels.record_stream(stream)
        return self.pixels


class CudaTransfer:
    """Sends pixels to a CUDA device on a stream of its own, so that transfers overlap with computation."""

    def __init__(self, device: str | torch.device) -> None:
        self._device = torch.device(device)
        self._stream: Any = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def send(self, read: Callable[[], NDArray[np.uint8]]) -> _Sent:
        """Read pixels, pin them and start their transfer; without memory on the device they stay in main memory."""
        began = time.perf_counter()
        pixels = torch.from_numpy(read())
        seconds = time.perf_counter() - began
        try:
            with torch.cuda.stream(self._stream):
                on_device = pixels.pin_memory().to(self._device, non_blocking=True)
                return _Sent(on_device, seconds, self._stream.record_event())
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return _Sent(pixels, seconds)  # the encoder sends the pixels in parts that fit

    def join(self, parts: Sequence[_Sent]) -> Tensor:
        """Return all pixels as one tensor, in main memory if one part did not fit the device."""
        pixels = [part.arrived() for part in parts]
        if len(pixels) == 1:
            return pixels[0]
        if len({part.device for part in pixels}) == 1:
            try:
                return torch.cat(pixels)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
        return torch.cat([part.cpu() for part in pixels])
