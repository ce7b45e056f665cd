"""Cost of encoding a slide with each runtime (CPU-seconds of one thread), and agreement with torch in float32.

python benchmarks/encoding.py SLIDE BUNDLE…
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import torch

from napari_lrmil.cli.console import show_progress, with_finished_event
from napari_lrmil.core.features.extraction import ArrayEmbedder, Embeddings, PatchSet, extract_features
from napari_lrmil.core.features.prefetch import default_batch_size
from napari_lrmil.core.features.torch_encoding import Embedder
from napari_lrmil.core.metrics.agreement import spearman
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.pooling import pool_instances
from napari_lrmil.core.patching.grid import find_tissue_grid
from napari_lrmil.core.runtimes.select import RuntimeRequest, candidate_runtimes, evaluate_candidate, evenly_spaced_rows
from napari_lrmil.core.slides.slide import Slide

CPU = torch.device("cpu")
REPEATS = 3


def measure(path: Path, bundle_name: str) -> None:
    """Print one row per runtime."""
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
        for key in candidate_runtimes("auto", request)[1]:
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
    given = p.parse_args()
    torch.set_num_threads(1)
    print("| model | runtime | patches | CPU-s, reading included | Spearman | probability |")
    print("|---|---|---|---|---|---|")
    for bundle in given.bundles:
        measure(given.slide, bundle)


if __name__ == "__main__":
    main()
