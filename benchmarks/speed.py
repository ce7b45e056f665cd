"""Cost of a prediction on a CPU per step, with small students: LR against HR, and against the baseline pipeline.

    python benchmarks/speed.py SLIDE… --work DIR [--student NAME=BUNDLE…] [--bundle BUNDLE…] [--write PAGE]

The first slide is measured with every student at 5x and with one at 2.5x; each further slide with that one alone. A
student that is not given as a bundle has random weights. Cost does not depend on weights, but whether bfloat16 agrees
with float32, and so may be used, does. Agreement is measured with all bundles, and with those of `--bundle` too.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from real_tissue_table import put_between

from napari_lrmil.cli.console import show_progress
from napari_lrmil.core.atomic_files import write_json
from napari_lrmil.core.benchmark import (
    CHAIN,
    HR_STUDENT,
    LR,
    REFERENCE_SETUPS,
    Measurement,
    MeasurementSpec,
    benchmark_json,
    factor_table,
    measure_all,
    step_table,
)
from napari_lrmil.core.benchmark.setups import LR_TORCH
from napari_lrmil.core.benchmark.tables import EVERYTHING, cpu_name, resolution_shares, speedup_factors
from napari_lrmil.core.encoders import AlignedEncoder, resolve_encoder, round_to_half
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.prediction import Prediction
from napari_lrmil.core.metrics.agreement import spearman
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.mil import GatedAttentionMIL
from napari_lrmil.core.models.networks import StudentNetwork, write_bundle
from napari_lrmil.core.slides.slide import Slide

BEGIN, END = "<!-- written by benchmarks/speed.py --write -->", "<!-- end of speed.py -->"
SMALL, OTHERS = "mobilenet_v3_large", ("mobilenet_v2", "convnext_atto")
COLDS = 3
MeasurementsByKey = dict[tuple[str, str, float], list[Measurement]]  # slide, student, µm per LR pixel -> setups
Seconds = dict[str, list[float]]
GOALS_CPU_S = {SMALL: 1.3, "mobilenet_v2": 2.0}  # goals for a whole slide at 5x


def _parse_arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("slides", nargs="+", type=Path)
    p.add_argument("--work", type=Path, required=True, help="folder for bundles and results")
    p.add_argument("--student", action="append", default=[], help="a trained 5x bundle, as mobilenet_v2=FOLDER")
    p.add_argument(
        "--bundle", action="append", default=[], help="trained, for the agreement of fast and reference path"
    )
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--most-patches", type=int, default=512, help="of HR patches, more are sampled")
    p.add_argument("--write", type=Path, help="page to put the tables into")
    return p.parse_args()


def main() -> None:
    """Measure, print, and write the tables with --write."""
    args = _parse_arguments()
    trained = dict(word.split("=", 1) for word in args.student)
    bundles = {
        (name, mpp): Bundle(trained[name]) if mpp == 2.0 and name in trained else untrained(args.work, name, mpp)
        for name, mpp in [(SMALL, 2.0), (SMALL, 4.0), *((name, 2.0) for name in OTHERS)]
    }
    measurements: MeasurementsByKey = {}
    stored: dict[str, Any] = {"measured": []}
    for slide in args.slides:
        for (name, mpp), bundle in bundles.items():
            if slide != args.slides[0] and name != SMALL:
                continue
            setups = [*CHAIN, *REFERENCE_SETUPS] if (name, mpp) == (SMALL, 2.0) else [HR_STUDENT, LR, *REFERENCE_SETUPS]
            spec = MeasurementSpec(slide, bundle.path, repeats=args.repeats, most_patches=args.most_patches)
            key = (slide.name, name, mpp)
            measurements[key] = show_progress(measure_all(spec, setups), " ".join(map(str, key)))
            names = {"model": f"{name} at {10 / mpp:g}x", "slide": slide.name, "bundle": bundle.path.name}
            stored["measured"].append(
                benchmark_json(spec, measurements[key]) | names
            )  # no path: it goes into the repository
            print(f"## {key}\n{step_table(measurements[key])}\n{factor_table(measurements[key])}\n", flush=True)
    write_json(args.work / "speed.json", stored)
    colds = cold(args.slides[0], bundles[SMALL, 2.0], args.work)
    named = {f"{name} {10 / mpp:g}x": bundle for (name, mpp), bundle in bundles.items()}
    agreed = agreement(args.slides, named | {name: Bundle(name) for name in args.bundle})
    page = render_page(measurements, colds, agreed, args.slides[0].name)
    print(page)
    (args.work / "speed.md").write_text(page, encoding="utf-8")
    if args.write:
        write_json(Path(__file__).parent / "results" / "speed.json", stored)  # docs/explanation/scale.md is made of it
        put_between(args.write, BEGIN, END, page)


def untrained(work: Path, name: str, mpp: float) -> Bundle:
    """Write a bundle of a student with patches of 256 px, 20x for its teacher's grid."""
    torch.manual_seed(0)
    loaded = resolve_encoder(name)
    assert loaded is not None
    encoder = loaded.encoder
    student = StudentNetwork(AlignedEncoder(encoder, encoder.dim), GatedAttentionMIL(encoder.dim, 2)).eval()
    round_to_half(student)
    card = {"name": f"{name}-{10 / mpp:g}x", "classes": ("normal", "lesion"), "hr_mpp": 0.5, "lr_mpp": mpp}
    return write_bundle(work / f"{name}-{mpp:g}", card | {"hr_patch_px": 256, "lr_patch_px": 256}, student, None)


def cold(slide: Path, bundle: Bundle, work: Path) -> Seconds:
    """Return wall seconds of new processes until the first result: the first one, which converts, and later ones."""
    seconds: Seconds = {"first": [], "later": []}
    environment = os.environ | {"NAPARI_LRMIL_CACHE": str(work / "cache")}
    for kind in ("first", *["later"] * COLDS):
        call = [sys.executable, "-m", "napari_lrmil", "predict", slide, "--bundle", bundle.path, "--no-resume"]
        began = time.perf_counter()
        with (work / "cold.txt").open("a") as output:
            command = [str(word) for word in [*call, "--out", work / "cold"]]
            subprocess.run(command, check=True, stdout=output, stderr=output, env=environment)
        seconds[kind].append(time.perf_counter() - began)
    return seconds


def agreement(slides: Sequence[Path], bundles: Mapping[str, Bundle]) -> list[str]:
    """Return one row per slide, model, reader and runtime: difference from the result of OpenSlide and torch."""
    rows = []
    for path in slides:
        for name, bundle in bundles.items():
            reference = answer(path, bundle, "openslide", "torch")
            for reader, runtime in (("tiles", "torch"), ("openslide", "openvino"), ("tiles", "openvino")):
                prediction = answer(path, bundle, reader, runtime)
                rank = spearman(reference.student.attention, prediction.student.attention)
                shares = (reference.student.probabilities, prediction.student.probabilities)
                difference = max(abs(shares[0][c] - shares[1][c]) for c in shares[0])
                choice = prediction.student.runtime
                correlation = "undefined" if rank is None else f"{rank:.5f}"
                rows.append(
                    f"| {path.name} | {name} | {reader} | {choice.name} {choice.precision} | "
                    f"{len(prediction.student.attention)} | {correlation} | {difference:.1e} |"
                )
    return rows


def answer(path: Path, bundle: Bundle, reader: str, runtime: str) -> Prediction:
    """Return the prediction of a model for a slide with a reader and a runtime."""
    with Slide(path, reader=reader if reader == "openslide" else "auto") as slide:
        events = predict(slide, bundle, device=torch.device("cpu"), runtime=runtime)
        prediction: Prediction = show_progress(events, path.name, shown_notices={bundle.card.about, *slide.warnings})
        return prediction


def render_page(measurements: MeasurementsByKey, colds: Seconds, agreed: list[str], first: str) -> str:
    """Return the page: goals and tables."""
    parts = [f"{cpu_name()}, Python {platform.python_version()}, torch {torch.__version__}, one thread.", ""]
    parts += ["| goal | measured | |", "|---|---|---|", *goal_rows(measurements, colds, first), ""]
    for (slide, name, mpp), setups in measurements.items():
        parts += [f"**{slide}, {name} at {10 / mpp:g}x**", "", step_table(setups), "", factor_table(setups), ""]
    heads = "| slide | model | reader | runtime | patches | Spearman of attention | probabilities apart |"
    return "\n".join([*parts, heads, "|---|---|---|---|---|---|---|", *agreed, ""])


def goal_rows(measurements: MeasurementsByKey, colds: Seconds, first: str) -> list[str]:
    """Return one row per goal, with the figure measured on the first slide."""
    small = measurements[first, SMALL, 2.0]
    lr = setup_of(small, LR)
    rows = []
    for mpp in (2.0, 4.0):
        fast, reference = resolution_shares(measurements[first, SMALL, mpp])
        figures = f"{fast:.2f} with predict defaults; {reference:.2f} with torch and OpenSlide"
        goal = f"{10 / mpp:g}x: CPU saved over patches saved, at least 0.9"
        rows.append((goal, figures, fast >= 0.9))
    saved = {f.before: f for f in speedup_factors(small)}
    lower = saved[HR_STUDENT.name]
    figures = f"{lower.cpu:.1f} times for {lower.patches:.1f} times fewer patches"
    rows.append(("5x against HR, above 10 times", figures, lower.cpu > 10))
    everything = next(f.cpu for f in speedup_factors(small) if f.changed == EVERYTHING)
    rows.append(("5x against the usual pipeline, at least 300 times", f"{everything:.0f} times", everything >= 300))
    for name, most in GOALS_CPU_S.items():
        setups = measurements[first, name, 2.0]
        seconds, torch_seconds = setup_of(setups, LR).whole_cpu, setup_of(setups, LR_TORCH).whole_cpu
        assert seconds is not None and torch_seconds is not None
        figures = (
            f"{seconds:.2f}, {setup_of(setups, LR).cpu['total']:.2f} step by step; torch, OpenSlide {torch_seconds:.2f}"
        )
        rows.append((f"whole slide at 5x, {name}: at most {most:g} CPU-s", figures, seconds <= most))
    tissue = lr.cpu["tissue"]
    rows.append(("tissue, at most 50 ms", f"{1000 * tissue:.0f} ms, reading included", tissue <= 0.05))
    rows.append(("most memory, at most 900 MB", f"{lr.peak_mb:.0f} MB", lr.peak_mb <= 900))
    later = median(colds["later"])
    figures = f"{later:.1f} s ({colds['first'][0]:.1f} s the very first time, which converts the model)"
    rows.append(("first result of a new process, at most 8 s", figures, later <= 8))
    return [f"| {goal} | {measured} | {'met' if held else '**missed**'} |" for goal, measured, held in rows]


def setup_of(measurements: Sequence[Measurement], setup: object) -> Measurement:
    """Return the measurement of a setup."""
    return next(measured for measured in measurements if measured.setup == setup)


if __name__ == "__main__":
    main()
