"""Feature extraction: read a slide's patches, batch, encode and collect."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from napari_lrmil.core.errors import EncoderError, LrmilError
from napari_lrmil.core.events import Event, Notice, Progress
from napari_lrmil.core.features.bag import Features
from napari_lrmil.core.features.devices import device_type
from napari_lrmil.core.features.prefetch import BatchSize, PatchPrefetcher
from napari_lrmil.core.formatting import format_count
from napari_lrmil.core.geometry import Int64
from napari_lrmil.core.patching.stain import StainTransform
from napari_lrmil.core.slides.slide import Slide

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from napari_lrmil.core.features.torch_encoding import Embedder


@runtime_checkable
class ArrayEmbedder(Protocol):
    """Encoder of another runtime than torch: arrays in, arrays out."""

    def embed(self, pixels: NDArray[np.uint8]) -> Features:
        """Return the (B, D) embeddings of (B, h, w, 3) uint8 pixels."""
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
    stain
        Colour transform of the slide; None leaves pixels as read.
    """

    corners: Int64
    size_level0: tuple[int, int]
    patch_px: int
    input_px: int | None = None
    stain: StainTransform | None = None

    def __len__(self) -> int:
        return len(self.corners)

    @property
    def side(self) -> int:
        """Side of the encoder's input in pixels."""
        return self.input_px or self.patch_px

    @property
    def patch_size(self) -> tuple[tuple[int, int], int]:
        """Size in level-0 pixels, and side in pixels as read."""
        return self.size_level0, self.patch_px

    def read(self, slide: Slide, rows: slice) -> NDArray[np.uint8]:
        """Return (B, patch_px, patch_px, 3) uint8 pixels of some of the patches."""
        pixels = slide.read_patches(self.corners[rows], self.size_level0, self.patch_px)
        return pixels if self.stain is None else self.stain.apply(pixels)


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
    encoder: Embedder | ArrayEmbedder,
    *,
    device: str | torch.device,
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
    encoder: Embedder | ArrayEmbedder,
    pixels: NDArray[np.uint8] | Tensor,
    input_px: int | None,
    device: str | torch.device,
    pooled: dict[str, list[NDArray[np.float32]]],
    size: BatchSize,
) -> Generator[Event, None, None]:
    """Add the features of a batch to `pooled`. The batch size is halved when memory runs out."""
    layers = [name for name in pooled if name]
    start = 0
    while start < len(pixels):
        try:
            arrays = _embed(encoder, pixels[start : start + size.size], input_px, device, layers)
        except Exception as error:
            if not _is_out_of_memory(error):
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
        _free_device_memory(device)
        yield Notice(
            f"the memory of {device} ran out: {format_count(size.size, 'patch', 'patches')} at once from now on"
        )


def embed(
    encoder: Embedder | ArrayEmbedder, pixels: NDArray[np.uint8], input_px: int | None, device: str | torch.device
) -> Features:
    """Return the (B, D) embeddings of (B, h, w, 3) uint8 pixels, by torch or by another runtime."""
    return _embed(encoder, pixels, input_px, device, ())[0]


def _embed(
    encoder: Embedder | ArrayEmbedder,
    pixels: NDArray[np.uint8] | Tensor,
    input_px: int | None,
    device: str | torch.device,
    layers: Sequence[str],
) -> list[Features]:
    """Return the embeddings of a batch, and the pooled maps of `layers`."""
    if isinstance(encoder, ArrayEmbedder):
        if layers:
            raise EncoderError("this runtime returns embeddings only; layers need --runtime torch")
        return [encoder.embed(_resized(pixels, input_px))]
    from napari_lrmil.core.features.torch_encoding import encode, to_numpy

    output = encode(encoder, pixels, input_px, device, layers)
    return [to_numpy(output.embedding), *(to_numpy(output.maps[name].mean(dim=(2, 3))) for name in layers)]


def _resized(pixels: Any, input_px: int | None) -> NDArray[np.uint8]:
    """Return patches of the encoder's size. Only models that resize need torch for it, and get its values."""
    if input_px is None or pixels.shape[1] == input_px:
        return np.asarray(pixels)
    import torch

    from napari_lrmil.core.features.torch_encoding import resize_patches

    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    resized: NDArray[np.uint8] = resize_patches(batch, input_px).permute(0, 2, 3, 1).contiguous().numpy()
    return resized


def _is_out_of_memory(error: Exception) -> bool:
    if "torch" not in sys.modules:  # no other runtime uses the memory of a device
        return False
    from napari_lrmil.core.features.torch_encoding import is_out_of_memory

    return is_out_of_memory(error)


def _free_device_memory(device: str | torch.device) -> None:
    if device_type(device) == "cuda":
        import torch

        torch.cuda.empty_cache()
