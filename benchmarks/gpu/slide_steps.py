"""Steps on the large slide: whole predictions, reading and encoding together, the live view, two processes."""

from __future__ import annotations

import time
from collections.abc import Generator
from functools import partial
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import numpy as np
import shapely
import torch
from encoding_steps import Embedder, make_variant
from machine_steps import slide_path
from steps import NO_CUDA, PROBLEM, Context

from napari_lrmil.api import load_bundle, open_slide, predict, run_to_end
from napari_lrmil.core.features.extraction import PatchSet, extract_features
from napari_lrmil.core.features.prefetch import PatchPrefetcher
from napari_lrmil.core.inference.network_input import teacher_input
from napari_lrmil.core.inference.predict import predict as predict_events
from napari_lrmil.core.inference.prediction import NetworkPrediction, Prediction
from napari_lrmil.core.metrics.agreement import spearman
from napari_lrmil.core.patching.grid import find_tissue_grid
from napari_lrmil.core.patching.regions import Region
from napari_lrmil.core.patching.roi import RegionOfInterest
from napari_lrmil.core.processes import Child
from napari_lrmil.core.slides.slide import Slide

MIN_RANK, MAX_DIFFERENCE = 0.999, 1e-2  # as the engine asks of a runtime, see core.runtimes.select
VIEW_SIDES = (1, 2, 4, 8)  # LR patches per side of a visible region
STREAM_BATCH = 256


# ---------------------------------------------------------------- predictions


def predict_slide(context: Context) -> dict[str, Any]:
    """Predict the whole slide with student (LR) and teacher (HR), in float32 and with the runtime ``auto``.

    Seconds are wall seconds of the second pass or the median of more; ``first_s`` is the first pass of the process,
    in which kernels are chosen. Attention and probabilities are compared with the CPU's in float32.
    """
    context.resolved  # noqa: B018  # an absent device is an error now, not after the reference
    reference = predict(slide_path(context), "demo", teacher="all", device="cpu", runtime="torch")
    rows = _rows("cpu, torch", [reference], reference)
    for runtime in ("torch", "auto"):
        if (context.kind, runtime) == ("cpu", "torch"):
            continue
        bundle, calls = load_bundle("demo"), 1 + context.pick(1, 3)
        predictions = [
            predict(slide_path(context), bundle, teacher="all", device=context.kind, runtime=runtime)
            for _ in range(calls)
        ]
        rows |= _rows(f"{context.kind}, {runtime}", predictions, reference)
    different = [name for name, row in rows.items() if row["rank"] < MIN_RANK or row["apart"] > MAX_DIFFERENCE]
    return rows | ({PROBLEM: f"other results than on the CPU: {'; '.join(different)}"} if different else {})


def _rows(label: str, predictions: list[Prediction], reference: Prediction) -> dict[str, Any]:
    """Return one row per network; the seconds of the first prediction are kept apart if there are more."""
    rows = {}
    for name, part in (("LR", "student"), ("HR", "teacher")):
        passes: list[NetworkPrediction] = [getattr(prediction, part) for prediction in predictions]
        expected: NetworkPrediction = getattr(reference, part)
        later = passes[1:] or passes
        steps = {f"{step}_s": median(p.seconds[step] for p in later) for step in ("total", "read", "encode")}
        rank = spearman(expected.attention, passes[-1].attention)
        rows[f"{name}, {label}"] = {
            "runtime": f"{passes[-1].runtime.name} {passes[-1].runtime.precision}",
            "patches": len(expected.attention),
            "first_s": passes[0].seconds["total"],
            **steps,
            "cpu_s": median(p.cpu_seconds for p in later),
            "rank": 1.0 if rank is None else rank,
            "apart": max(abs(value - passes[-1].probabilities[c]) for c, value in expected.probabilities.items()),
        }
    return rows


# ---------------------------------------------------------------- reading and encoding together


def _teacher_patches(slide: Slide, limit: int | None) -> tuple[PatchSet, Any]:
    """Return HR patches of a slide and the encoder that reads them."""
    bundle = load_bundle("demo")
    grid = find_tissue_grid(slide, bundle.card.plan, bundle.card.tissue).grid
    patches = teacher_input(bundle.card, grid).patches
    return PatchSet(patches.corners[:limit], patches.size_level0, patches.patch_px), bundle.teacher.encoder


def measure_pipeline(context: Context) -> dict[str, Any]:
    """Read and encode all HR patches with several number formats, transfers and numbers of reading threads.

    The first rows call the engine's loop, which adapts its batch size. The others have batches of `STREAM_BATCH`
    patches and compare transfers: from pinned memory on a stream of their own, or pageable and in line.
    """
    rows: dict[str, Any] = {}
    with open_slide(slide_path(context)) as slide:
        patches, network = _teacher_patches(slide, context.pick(64, None))
        encoder = network.to(context.kind)
        variants = ("float32", "bfloat16") + (("float16",) if context.kind == "cuda" else ())
        for name in variants:
            extract = partial(_extract, context, slide, patches, make_variant(name, encoder, context.kind))
            rows[f"engine, {name}"] = _patch_rate(len(patches), extract)
        embedder = make_variant("bfloat16" if context.kind == "cuda" else "float32", encoder, context.kind)
        for readers in context.pick((1,), (1, 4, 16)):
            for transfer, kind in (("pinned, own stream", "cuda"), ("pageable, in line", "cpu")):
                row = f"{transfer}, {readers} readers"
                if kind == "cuda" and context.kind != "cuda":
                    rows[row] = {"skipped": NO_CUDA}
                    continue
                stream = partial(_stream, context, slide, patches, embedder, kind, readers)
                rows[row] = _patch_rate(len(patches), stream)
    return rows


def _patch_rate(count: int, work: Any) -> dict[str, float]:
    work()  # the first pass chooses kernels and fills the page cache
    began, cpu = time.perf_counter(), time.process_time()
    work()
    seconds = time.perf_counter() - began
    return {"patches_per_s": count / seconds, "seconds": seconds, "cpu_s": time.process_time() - cpu}


def _extract(context: Context, slide: Slide, patches: PatchSet, embedder: Embedder) -> np.ndarray:
    features: np.ndarray = drain(extract_features(slide, patches, embedder, device=context.resolved)).features
    return features


def _stream(context: Context, slide: Slide, patches: PatchSet, embedder: Embedder, kind: str, readers: int) -> None:
    """Encode patches in fixed batches; `kind` is the device that the prefetcher sends them to."""
    device = context.resolved if kind == context.kind else _cpu()
    with PatchPrefetcher(partial(patches.read, slide), len(patches), device, readers=readers) as queue:
        while (taken := queue.take(STREAM_BATCH)) is not None:
            with torch.inference_mode():
                pixels = torch.as_tensor(taken.pixels).to(context.kind).permute(0, 3, 1, 2)
                embedder(pixels).embedding.float().cpu()  # waits for the device


def _cpu() -> Any:
    from napari_lrmil.core.features.devices import resolve_device

    return resolve_device("cpu")


def drain(events: Generator[Any, None, Any]) -> Any:
    """Return what a generator of events returns."""
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value


# ---------------------------------------------------------------- live view


def measure_live_view(context: Context) -> dict[str, Any]:
    """Predict visible regions of a few LR patches each, as the window does while the view moves; milliseconds."""
    rows: dict[str, Any] = {}
    bundle = load_bundle("demo")
    with open_slide(slide_path(context)) as slide:
        tissue = find_tissue_grid(slide, bundle.card.plan, bundle.card.tissue)
        corners, cell = tissue.grid.lr_corners, np.array(tissue.grid.lattice.lr_cell)
        for side in VIEW_SIDES[: context.pick(2, None)]:
            times, counts = [], []
            for row in np.linspace(0, len(corners) - 1, context.pick(3, 20)).astype(int):
                box = shapely.box(*corners[row], *(corners[row] + side * cell))
                scope = RegionOfInterest("view", (Region("view", box),))
                began = time.perf_counter()
                prediction: Prediction = run_to_end(
                    predict_events(slide, bundle, device=context.resolved, scope=scope, tissue_grid=tissue)
                )
                times.append(1000 * (time.perf_counter() - began))
                counts.append(len(prediction.student.attention))
            rows[f"{side} x {side} cells"] = {
                "patches": median(counts),
                "first_ms": times[0],
                "median_ms": median(times[1:]),
                "slowest_ms": max(times[1:]),
            }
    return rows


# ---------------------------------------------------------------- two processes


def predict_in_two_processes(context: Context) -> dict[str, Any]:
    """Predict the slide repeatedly in one process, then in two at once that share the device."""
    repeats = context.pick(1, 6)
    children = [Child(f"process {i + 1}", _predict_for_parent, context, repeats) for i in range(2)]
    try:
        for child in children:
            child.receive()  # ready, after a first prediction
        alone = _slides_per_second(children[:1], repeats)
        together = _slides_per_second(children, repeats)
    finally:
        for child in children:
            child.close()
    rows = {"one process": {"slides_per_s": alone}, "two processes": {"slides_per_s": together}}
    return rows | {"gain": together / alone}


def _slides_per_second(children: list[Child], repeats: int) -> float:
    began = time.perf_counter()
    for child in children:
        child.send("go")
    for child in children:
        child.receive()
    return len(children) * repeats / (time.perf_counter() - began)


def _predict_for_parent(pipe: Connection, context: Context, repeats: int) -> None:
    bundle = load_bundle("demo")
    predict(slide_path(context), bundle, device=context.kind)
    pipe.send("ready")
    while pipe.recv():
        for _ in range(repeats):
            predict(slide_path(context), bundle, device=context.kind)
        pipe.send("done")
