"""Steps in which GPU memory runs out on purpose: the engine must halve its batch and give the same results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from encoding_steps import Embedder, tensor_cores
from machine_steps import slide_path
from slide_steps import drain
from steps import PROBLEM, Context
from torch import Tensor
from training_steps import SMALL, train_once

from napari_lrmil.api import load_bundle, open_slide
from napari_lrmil.core.encoders import EncoderOutput
from napari_lrmil.core.events import Event, Notice
from napari_lrmil.core.features.extraction import PatchSet, extract_features
from napari_lrmil.core.inference.network_input import teacher_input
from napari_lrmil.core.patching.grid import find_tissue_grid
from napari_lrmil.core.slides.slide import Slide

MAX_DIFFERENCE = 1e-4  # of float32 embeddings between batch sizes, over the largest value
ALLOWED_BATCH = 8  # patches that the limited memory holds; the engine begins with 32
TRANSFER_BYTES = 24 * 2**20  # a block of torch's allocator, 20 MiB, for patches that arrive on a stream of their own


class LimitedEncoder:
    """Encoder on the CPU that reports memory as used up above a batch size, as a GPU does.

    Parameters
    ----------
    encoder
        Encoder to call.
    largest
        Largest batch that it accepts.
    """

    def __init__(self, encoder: Embedder, largest: int) -> None:
        self._encoder, self._largest = encoder, largest

    def __call__(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        """Encode a batch."""
        if len(pixels) > self._largest:
            raise torch.OutOfMemoryError(f"{len(pixels)} patches at once")
        return self._encoder(pixels, layers)


def exhaust_prediction(context: Context) -> dict[str, Any]:
    """Encode HR patches with too little GPU memory, and compare with the embeddings of enough memory."""
    notices: list[str] = []
    with open_slide(slide_path(context)) as slide, tensor_cores(False):
        patches, encoder = _enlarged_patches(context, slide)
        expected = drain(extract_features(slide, patches, encoder, device=context.resolved)).features
        limited = _limit_encoder(context, encoder, patches.side)
        features = _collect(extract_features(slide, patches, limited, device=context.resolved), notices).features
    difference = float(np.abs(expected - features).max() / np.abs(expected).max())
    result: dict[str, Any] = {"notices": len(notices), "last": "".join(notices[-1:]), "difference": difference}
    if not notices:
        result[PROBLEM] = "the memory did not run out"
    elif difference > MAX_DIFFERENCE:
        result[PROBLEM] = f"embeddings differ by {difference:.1e} of the largest"
    return result


def _enlarged_patches(context: Context, slide: Slide) -> tuple[PatchSet, Any]:
    """Return some HR patches and their encoder; on a GPU enlarged, so that the encoder needs most of the memory."""
    bundle = load_bundle("demo")
    grid = find_tissue_grid(slide, bundle.card.plan, bundle.card.tissue).grid
    rows = np.arange(len(grid.lr_index)) < context.pick(8, 64)
    patches = teacher_input(bundle.card, grid.select(rows)).patches
    enlarged = replace(patches, input_px=2 * patches.patch_px) if context.kind == "cuda" else patches
    return enlarged, bundle.teacher.encoder.to(context.kind)


def _limit_encoder(context: Context, encoder: Embedder, side: int) -> Embedder:
    """Limit the GPU memory to what `ALLOWED_BATCH` patches need; on a CPU, return an encoder that imitates it."""
    if context.kind != "cuda":
        return LimitedEncoder(encoder, ALLOWED_BATCH)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with torch.inference_mode():
        encoder(torch.zeros(ALLOWED_BATCH, 3, side, side, dtype=torch.uint8, device="cuda"))
    torch.cuda.synchronize()
    limit_memory(torch.cuda.max_memory_reserved() + TRANSFER_BYTES)
    return encoder


def limit_memory(size: int) -> None:
    """Let torch reserve at most `size` bytes of the GPU from now on."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(size / torch.cuda.get_device_properties(0).total_memory)


def _collect(events: Any, notices: list[str]) -> Any:
    """Return what a generator of events returns, and add its notices to a list."""
    while True:
        try:
            event: Event = next(events)
        except StopIteration as end:
            return end.value
        if isinstance(event, Notice):
            notices.append(event.message)


def exhaust_training(context: Context) -> dict[str, Any]:
    """Train with large steps, then with less GPU memory than they need: a stage must begin again with smaller ones."""
    settings = {"stage1": {"epochs": 1, "batch_size": 512}, "stage3": {"epochs": 0}, "precision": "32"}
    train_once(context, "memory, enough", "cuda", settings, sizes=SMALL)  # one step decides, so few epochs do
    needed = torch.cuda.max_memory_reserved()
    limit_memory(round(0.6 * needed))
    notices = train_once(context, "memory, limited", "cuda", settings, sizes=SMALL)["notices"]
    ran_out = [text for text in notices if "memory ran out" in text]
    result: dict[str, Any] = {"needed_mb": needed / 1e6, "notices": len(ran_out), "last": "".join(ran_out[-1:])}
    return result if ran_out else result | {PROBLEM: "the memory did not run out"}
