"""Cost of encoding a slide with each runtime (CPU-seconds of one thread), and agreement with torch in float32.

python benchmarks/encoding.py SLIDE BUNDLE… [--layers]

With `--layers`: where OpenVINO spends the time, and the time of the same arithmetic at the peak of this CPU.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_lrmil.cli.console import show_progress, with_finished_event
from napari_lrmil.core.features.extraction import ArrayEmbedder, Embeddings, PatchSet, extract_features
from napari_lrmil.core.features.prefetch import default_batch_size
from napari_lrmil.core.features.torch_encoding import Embedder
from napari_lrmil.core.metrics.agreement import spearman
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.pooling import pool_instances
from napari_lrmil.core.patching.grid import find_tissue_grid
from napari_lrmil.core.runtimes.agreement_cache import MODEL_FILE, RuntimeKey
from napari_lrmil.core.runtimes.select import RuntimeRequest, candidate_runtimes, evaluate_candidate, evenly_spaced_rows
from napari_lrmil.core.slides.slide import Slide

CPU = torch.device("cpu")
REPEATS = 3
COMPILATIONS, CALLS = 8, 9  # few calls per compilation: OpenVINO reports the mean of all calls so far, in whole µs
PEAK_SHAPE = (2, 512, 32, 32)  # batch, channels, height, width: dense enough for the peak, small enough for the cache
HINTS = {"bfloat16": "bf16", "float32": "f32"}


def measure(path: Path, bundle_name: str, with_layers: bool) -> None:
    """Print one row per runtime, and the layers of the first if they are wanted."""
    bundle = Bundle(bundle_name)
    card = bundle.card
    with Slide(path) as slide:
        grid = find_tissue_grid(slide, card.plan, card.tissue).grid
        patches = PatchSet(grid.lr_corners, grid.lattice.lr_cell, card.lr_patch_px, card.student_input_px)
        sample = PatchSet(
            patches.corners[evenly_spaced_rows(len(patches), patches.side)],
            patches.size_level0,
            patches.patch_px,
            patches.input_px,
        )
        request = RuntimeRequest(
            load=lambda: bundle.student,
            mil=bundle.student_mil,
            family=card.student.encoder.family,
            device=CPU,
            identity=f"{bundle.sha256} student",
            side=patches.side,
            temperature=card.temperature,
            patches=len(patches),
            pixels=partial(sample.read, slide, slice(None)),
            prepared={},
        )
        embedders: dict[str, Embedder | ArrayEmbedder] = {"torch float32, as it is": bundle.student.encoder}
        keys = list(candidate_runtimes("auto", request)[1])
        for key in keys:
            candidate = evaluate_candidate(request, key)
            embedders[f"{key.runtime} {key.precision}{'' if candidate.check.agrees else ' (refused)'}"] = (
                candidate.embedder or bundle.student.encoder
            )
        reference = _embed_timed(slide, patches, bundle.student.encoder)[0]
        expected = pool_instances(bundle.student_mil, reference.features)
        runs: dict[str, list[tuple[Embeddings, float]]] = {name: [] for name in embedders}
        for _ in range(REPEATS):  # in turns, because the load of the machine can change
            for name, embedder in embedders.items():
                runs[name].append(_embed_timed(slide, patches, embedder))
        for name, measured in runs.items():
            pooled = pool_instances(bundle.student_mil, measured[0][0].features)
            shares = [
                torch.softmax(torch.from_numpy(p.logits) / (card.temperature or 1), 0) for p in (expected, pooled)
            ]
            rank = spearman(expected.attention, pooled.attention) or 0.0
            seconds = sorted(cpu for _, cpu in measured)[REPEATS // 2]
            difference = float((shares[0] - shares[1]).abs().max())
            print(
                f"| {bundle.name} | {name} | {len(patches)} x {patches.side} px | {seconds:.2f} "
                f"| {rank:.5f} | {difference:.1e} |"
            )
        if with_layers:
            print_layers(keys[0], request.sample, len(patches))


def print_layers(key: RuntimeKey, pixels: NDArray[np.uint8], patches: int) -> None:
    """Print the time of each kind of layer for all patches, and that of its arithmetic at the peak of this CPU."""
    seconds, macs = profile_layers(key, pixels)
    peak = peak_macs_per_second(key.precision)
    print(f"\nOpenVINO in {key.precision}, {patches} patches; peak {peak / 1e9:.0f} GMAC/s\n")
    print("| layers | s | GMAC | s at peak |\n|---|---|---|---|")
    for kind in sorted(seconds, key=lambda kind: -seconds[kind]):
        total = patches * macs[kind]
        print(f"| {kind} | {patches * seconds[kind]:.3f} | {total / 1e9:.1f} | {total / peak:.3f} |")
    total = patches * sum(macs.values())
    print(f"| all | {patches * sum(seconds.values()):.3f} | {total / 1e9:.1f} | {total / peak:.3f} |")


def profile_layers(key: RuntimeKey, pixels: NDArray[np.uint8]) -> tuple[dict[str, float], dict[str, int]]:
    """Return kind of layer -> seconds per patch, and kind -> multiplications per patch.

    Wall time of a layer is the lower quartile of its calls: other programs interrupt some of them.
    """
    import openvino

    stored = (key.folder / MODEL_FILE).read_bytes()
    settings = {"INFERENCE_PRECISION_HINT": HINTS[key.precision], "INFERENCE_NUM_THREADS": 1, "PERF_COUNT": True}
    durations: defaultdict[str, list[float]] = defaultdict(list)  # name of a layer -> µs of its calls
    macs: dict[str, int] = {}
    kinds: dict[str, str] = {}
    batch = 1
    for _ in range(COMPILATIONS):
        compiled = openvino.Core().import_model(stored, "CPU", settings)
        batch, request, means = compiled.inputs[0].shape[0], compiled.create_infer_request(), dict[str, float]()
        for op in compiled.get_runtime_model().get_ordered_ops():
            macs[op.get_friendly_name()], kinds[op.get_friendly_name()] = layer_macs(op), layer_kind(op)
        for call in range(1, CALLS + 1):
            first = call * batch % (len(pixels) - batch)
            request.infer([np.ascontiguousarray(pixels[first : first + batch])])
            for layer in request.get_profiling_info():
                name, mean = layer.node_name, layer.real_time.total_seconds()
                if call > 1 and name in kinds:  # the first call prepares layers; fused ones are part of others
                    durations[name].append(call * mean - (call - 1) * means.get(name, 0.0))
                means[name] = mean
    seconds: defaultdict[str, float] = defaultdict(float)
    multiplications: defaultdict[str, int] = defaultdict(int)
    for name, values in durations.items():
        seconds[kinds[name]] += quantiles(values, n=4)[0] / batch
        multiplications[kinds[name]] += macs[name] // batch
    return seconds, multiplications


def layer_kind(op: Any) -> str:
    """Return the kind of a layer, for people."""
    kind = op.get_rt_info()["layerType"].astype(str)
    if kind != "Convolution":
        return "input: pixels to numbers" if kind == "Subgraph" else "others"
    weights = op.input(1).get_source_output().get_partial_shape()
    if len(weights) == 5:
        return "depthwise convolutions"
    return "1 x 1 convolutions" if weights[3].get_length() == 1 else "first convolution"


def layer_macs(op: Any) -> int:
    """Return the multiplications of a layer; 0 if it is no convolution."""
    if op.get_rt_info()["layerType"].astype(str) != "Convolution":
        return 0
    weights = op.input(1).get_source_output().get_shape()  # grouped ones have the group as another axis in front
    return int(np.prod(op.output(0).get_shape()) * np.prod(weights[2 if len(weights) == 5 else 1 :]))


def peak_macs_per_second(precision: str) -> float:
    """Return the multiplications per CPU-second of one thread in a large convolution of 1 x 1."""
    import openvino
    from openvino import opset13

    channels = PEAK_SHAPE[1]
    pixels = opset13.parameter(PEAK_SHAPE, np.float32)
    weights = opset13.constant(np.full((channels, channels, 1, 1), 1 / channels, np.float32))
    output = pixels
    for _ in range(3):  # the conversion of the input becomes a small share
        output = opset13.convolution(output, weights, [1, 1], [0, 0], [0, 0], [1, 1])
    settings = {"INFERENCE_PRECISION_HINT": HINTS[precision], "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(openvino.Model([output], [pixels]), "CPU", settings)
    request, seconds = compiled.create_infer_request(), []
    for _ in range(16):
        began = time.process_time()
        request.infer([np.ones(PEAK_SHAPE, np.float32)], share_inputs=True)
        seconds.append(time.process_time() - began)
    return float(3 * np.prod(PEAK_SHAPE) * channels / min(seconds))


def _embed_timed(slide: Slide, patches: PatchSet, embedder: Embedder | ArrayEmbedder) -> tuple[Embeddings, float]:
    """Return embeddings and the CPU-seconds of reading and encoding them."""
    began = time.process_time()
    work = extract_features(slide, patches, embedder, device=CPU, batch=default_batch_size(patches.side))
    embeddings: Embeddings = show_progress(with_finished_event(work), slide.name)
    return embeddings, time.process_time() - began


def main() -> None:
    """Print the table."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("slide", type=Path)
    p.add_argument("bundles", nargs="+")
    p.add_argument("--layers", action="store_true", help="profile the layers of the first runtime")
    given = p.parse_args()
    torch.set_num_threads(1)
    print("| model | runtime | patches | CPU-s, reading included | Spearman | probability |")
    print("|---|---|---|---|---|---|")
    for bundle in given.bundles:
        measure(given.slide, bundle, given.layers)


if __name__ == "__main__":
    main()
