"""Steps that encode patches which are in the device's memory already: number formats, CUDA graphs, compilation."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from steps import NO_CUDA, Context
from torch import Tensor, nn

from napari_lrmil.core.encoders import EncoderOutput, EncoderSpec, build_encoder, resolve_encoder
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.runtimes.optimize import fold_batch_norm

Embedder = Callable[..., EncoderOutput]
CUDA_VARIANTS = frozenset({"float32, TF32", "float16", "bfloat16, CUDA graph"})
VARIANTS = (
    "float32",
    "float32, TF32",
    "bfloat16",
    "bfloat16, folded",
    "bfloat16 weights",
    "float16",
    "bfloat16, CUDA graph",
)
VIT_SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}


# ---------------------------------------------------------------- ways to run an encoder


class AutocastEncoder:
    """Encoder under autocast to one number format; embeddings are float32.

    Parameters
    ----------
    encoder
        Network on the device.
    kind
        ``cpu`` or ``cuda``.
    dtype
        Number format.
    caches_casts
        Keep cast weights during a call. A CUDA graph must not, because it would replay the casts of freed memory.
    """

    def __init__(self, encoder: Embedder, kind: str, dtype: torch.dtype, *, caches_casts: bool = True) -> None:
        self._encoder, self._kind, self._dtype, self._caches = encoder, kind, dtype, caches_casts

    def __call__(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        """Encode a (B, 3, h, w) uint8 batch."""
        with torch.autocast(self._kind, self._dtype, cache_enabled=self._caches):
            output = self._encoder(pixels, layers)
        return EncoderOutput(output.embedding.float(), output.maps)


class GraphEncoder:
    """Encoder that records its kernels once per batch shape as a CUDA graph and replays them.

    Parameters
    ----------
    encoder
        Encoder on a CUDA device, whose work does not depend on the values of the pixels.
    """

    def __init__(self, encoder: Embedder) -> None:
        self._encoder = encoder
        self._recorded: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def __call__(self, pixels: Tensor, layers: Sequence[str] = ()) -> EncoderOutput:
        """Encode a (B, 3, h, w) uint8 batch, without maps."""
        shape = tuple(pixels.shape)
        if shape not in self._recorded:
            self._recorded[shape] = self._record(pixels)
        graph, inputs, embedding = self._recorded[shape]
        inputs.copy_(pixels)
        graph.replay()
        return EncoderOutput(embedding.clone(), {})  # the next replay overwrites the recorded output

    def _record(self, pixels: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        inputs = pixels.clone(memory_format=torch.contiguous_format)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # warm-up: libraries allocate and choose kernels, which a recording must not
            for _ in range(3):
                self._encoder(inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            embedding = self._encoder(inputs).embedding
        return graph, inputs, embedding


@contextmanager
def tensor_cores(is_enabled: bool) -> Iterator[None]:
    """Allow or forbid TF32 in convolutions and matrix products of float32; torch allows the former by default."""
    flags = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = is_enabled
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = flags


def make_variant(name: str, encoder: nn.Module, kind: str) -> Embedder:
    """Return one of `VARIANTS` of an encoder."""
    if name.startswith("float32"):
        return encoder
    if name == "bfloat16 weights":  # autocast casts frozen weights again in every call
        return copy.deepcopy(encoder).to(torch.bfloat16)
    if name == "bfloat16, folded":
        encoder = fold_batch_norm(encoder)
    dtype = torch.float16 if name.startswith("float16") else torch.bfloat16
    if name == "bfloat16, CUDA graph":
        return GraphEncoder(AutocastEncoder(encoder, kind, dtype, caches_casts=False))
    return AutocastEncoder(encoder, kind, dtype)


# ---------------------------------------------------------------- measuring


def _networks(context: Context) -> Iterator[tuple[str, nn.Module, int]]:
    """Yield name, network and side of a patch in pixels. Weights do not change the cost."""
    yield "demo student", Bundle("demo").student.encoder, 128
    if context.small:
        return
    loaded = resolve_encoder("mobilenet_v3_large")
    assert loaded is not None
    yield "MobileNetV3", loaded.encoder, 256
    torch.manual_seed(0)
    yield "ViT-S/16", build_encoder(EncoderSpec("vit", VIT_SMALL, "none", "vit_small")), 224


def measure_encoding(context: Context) -> dict[str, Any]:
    """Measure patches per second of every network, variant and batch size, and the difference from float32.

    ``difference`` is the largest difference of an embedding over the largest embedding value.
    """
    rows: dict[str, Any] = {}
    batches = context.pick((8,), (32, 256))
    for label, network, side in _networks(context):
        encoder = network.eval().requires_grad_(False).to(context.kind)
        for batch in batches:
            generator = torch.Generator().manual_seed(batch)
            pixels = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=generator)
            rows |= _measure_variants(context, f"{label}, batch {batch}", encoder, pixels.to(context.kind))
    return rows


def _measure_variants(context: Context, label: str, encoder: nn.Module, pixels: Tensor) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    with torch.inference_mode(), tensor_cores(False):
        reference = encoder(pixels).embedding
    for name in VARIANTS:
        row = f"{label}, {name}"
        if name in CUDA_VARIANTS and context.kind != "cuda":
            rows[row] = {"skipped": NO_CUDA}
            continue
        try:
            with torch.inference_mode(), tensor_cores("TF32" in name):
                rows[row] = time_encoder(context, make_variant(name, encoder, context.kind), pixels, reference)
        except Exception as error:  # recorded: the other variants go on
            rows[row] = {"failed": f"{type(error).__name__}: {error}"[:500]}
    return rows


def time_encoder(context: Context, embedder: Embedder, pixels: Tensor, reference: Tensor) -> dict[str, float]:
    """Return patches per second, seconds of the first call, and the difference from reference embeddings."""
    context.synchronize()
    began = time.perf_counter()
    embedding = embedder(pixels).embedding
    context.synchronize()
    first, calls = time.perf_counter() - began, 0
    embedder(pixels)
    context.synchronize()
    began, budget = time.perf_counter(), context.pick(0.2, 0.5)
    while (seconds := time.perf_counter() - began) < budget:
        for _ in range(context.pick(1, 10)):
            embedder(pixels)
            calls += 1
        context.synchronize()
    difference = (embedding.float() - reference).abs().max() / reference.abs().max()
    return {"patches_per_s": calls * len(pixels) / seconds, "first_s": first, "difference": float(difference)}


def measure_compiled(context: Context) -> dict[str, Any]:
    """Measure ``torch.compile`` on every network in bfloat16, its first call included."""
    rows: dict[str, Any] = {}
    for label, network, side in _networks(context):
        encoder = network.eval().requires_grad_(False).to(context.kind)
        pixels = torch.randint(0, 256, (256, 3, side, side), dtype=torch.uint8).to(context.kind)
        with torch.inference_mode(), tensor_cores(False):
            reference = encoder(pixels).embedding
            compiled = AutocastEncoder(torch.compile(encoder, dynamic=False), context.kind, torch.bfloat16)
            try:
                rows[f"{label}, batch 256"] = time_encoder(context, compiled, pixels, reference)
            except Exception as error:  # recorded: the other networks go on
                rows[f"{label}, batch 256"] = {"failed": f"{type(error).__name__}: {error}"[:500]}
    return rows
