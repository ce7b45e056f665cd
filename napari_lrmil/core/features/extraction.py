"""Feature extraction: read a slide's patches, batch, encode and collect."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_lrmil.core.encoders import EncoderOutput
from napari_lrmil.core.errors import LrmilError
from napari_lrmil.core.events import Event, Notice, Progress
from napari_lrmil.core.features.bag import Features
from napari_lrmil.core.features.prefetch import BatchSize, PatchPrefetcher, is_out_of_memory
from napari_lrmil.core.geometry import Int64
from napari_lrmil.core.slides.slide import Slide


class Embedder(Protocol):
    """Callable that encodes (B, 3, h, w) uint8 pixels to `EncoderOutput`. Every encoder is one."""

    def __call__(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        """Encode a batch."""
        ...


@dataclass(frozen=True)
class PatchSet:
    """Patches of one size on a slide.

    Attributes
    ----------
    corners
        (N, 2) level-0 pixels (x, y).
    size_level0
        Width and height in level-0 pixels.
    patch_px
        Side of a patch as read.
    input_px
        Side to which patches are resized for the encoder; None means no resizing.
    """

    corners: Int64
    size_level0: tuple[int, int]
    patch_px: int
    input_px: int | None = None

    def __len__(self) -> int:
        return len(self.corners)

    @property
    def side(self) -> int:
        """Side of the encoder's input in pixels."""
        return self.input_px or self.patch_px

    def read(self, slide: Slide, rows: slice) -> NDArray[np.uint8]:
        """Return (B, patch_px, patch_px, 3) uint8 pixels of some of the patches."""
        return slide.read_patches(self.corners[rows], self.size_level0, self.patch_px)


@dataclass
class Embeddings:
    """Extracted features.

    Attributes
    ----------
    features
        (N, D) float32.
    layers
        Layer name -> (N, D_l) means of its maps.
    seconds_read, seconds_encode
        Seconds of reading and of encoding.
    encoded
        Number of encoded patches.
    """

    features: Features
    layers: dict[str, Features] = field(default_factory=dict)
    seconds_read: float = 0.0
    seconds_encode: float = 0.0
    encoded: int = 0


def extract_features(
    slide: Slide,
    patches: PatchSet,
    encoder: Embedder,
    *,
    device: torch.device,
    layers: Sequence[str] = (),
    stage: str = "encode",
    keep: Callable[[slice, Features], None] | None = None,
    readers: int | None = None,
    batch: int | None = None,
) -> Generator[Event, None, Embeddings]:
    """Encode patches. Yield `Progress` after every batch and return the features.

    Threads read a few batches ahead (see `PatchPrefetcher`). Closing the generator ends it after the running batches.

    Parameters
    ----------
    slide, patches, encoder, device
        What to encode, with what and where.
    layers
        Layers whose pooled maps are returned too.
    stage
        Name of the stage in the events.
    keep
        Receives rows and features of every batch at once, so that a cancelled run does not lose them.
    readers
        Number of reading threads; None means the default of the device.
    batch
        Batch size on a CPU (see `BatchSize`). None is the size that training has always used. Another size changes the
        last digits of the features.

    Raises
    ------
    SlideError
        If a patch cannot be read.
    LrmilError
        If the memory of the device does not hold a single patch.
    """
    result = Embeddings(np.zeros((0, 0), np.float32))
    pooled: dict[str, list[NDArray[np.float32]]] = {name: [] for name in ("", *layers)}
    size = BatchSize(device, batch)
    with PatchPrefetcher(partial(patches.read, slide), len(patches), device, readers=readers) as queue:
        while (taken := queue.take(size.size)) is not None:
            start, before, count = result.encoded, len(pooled[""]), len(taken.pixels)
            began = time.perf_counter()
            yield from _encode(encoder, taken.pixels, patches.input_px, device, pooled, size)
            seconds = time.perf_counter() - began
            size.note(count, seconds)
            result.seconds_read += taken.seconds
            result.seconds_encode += seconds
            result.encoded += count
            if keep is not None:
                keep(slice(start, start + count), np.concatenate(pooled[""][before:]))
            yield Progress(stage, start + count, len(patches))
    result.features = np.concatenate(pooled.pop(""))
    result.layers = {name: np.concatenate(parts) for name, parts in pooled.items()}
    return result


def _encode(
    encoder: Embedder,
    pixels: Tensor,
    input_px: int | None,
    device: torch.device,
    pooled: dict[str, list[NDArray[np.float32]]],
    size: BatchSize,
) -> Generator[Event, None, None]:
    """Add the features of a batch to `pooled`. The batch size is halved when memory runs out."""
    layers = [name for name in pooled if name]
    start = 0
    while start < len(pixels):
        try:
            output = _encoded(encoder, pixels[start : start + size.size], input_px, device, layers)
            arrays = [to_numpy(output.embedding), *(to_numpy(output.maps[name].mean(dim=(2, 3))) for name in layers)]
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if size.size == 1:
                raise LrmilError(
                    f"the memory of {device} does not hold a single patch; close other programs, or use --device cpu"
                ) from error
            size.halve()
        else:
            for parts, array in zip(pooled.values(), arrays, strict=True):
                parts.append(array)
            start += len(arrays[0])
            continue
        if device.type == "cuda":
            torch.cuda.empty_cache()
        yield Notice(f"the memory of {device} ran out: {size.size} patches at once from now on")


def encode(
    encoder: Embedder,
    pixels: NDArray[np.uint8],
    input_px: int | None,
    device: torch.device,
    layers: Sequence[str] = (),
) -> EncoderOutput:
    """Encode (B, h, w, 3) uint8 pixels without gradients. The transfer to the device is in uint8."""
    return _encoded(encoder, torch.from_numpy(pixels), input_px, device, layers)


def _encoded(
    encoder: Embedder, pixels: Tensor, input_px: int | None, device: torch.device, layers: Sequence[str]
) -> EncoderOutput:
    with torch.inference_mode():
        batch = pixels.to(device).permute(0, 3, 1, 2)  # (B, 3, h, w)
        return encoder(resize_patches(batch, input_px), layers)


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
