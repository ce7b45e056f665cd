"""Training of the shipped bundle, and its evaluation on phantom slides not used for training or selection.

    python benchmarks/demo_bundle.py --out RUN

Pretrains the HR encoder on normal phantom slides, makes a cohort, trains teacher and student through ``napari-lrmil
train``'s own code, and prints its table (docs, Demo model). ``--ship`` puts the bundle into the package.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from lrmil_training.config import build_config, load_config
from lrmil_training.runs.event_log import METRICS
from lrmil_training.stages.demo_encoder import PretrainConfig, pretrain
from lrmil_training.train import train
from napari_lrmil.cli.console import show_progress
from napari_lrmil.core.encoders import EncoderSpec
from napari_lrmil.core.events import Event, Finished
from napari_lrmil.core.features.devices import resolve_device
from napari_lrmil.core.models.bundle import SHIPPED
from napari_lrmil.core.phantom import make_cohort
from napari_lrmil.core.threads import leave_core_free

NETWORK = {"depth_multiplier": 0.35, "finegrained_output": False}
SPEC = EncoderSpec("mobilenet_v2", NETWORK, licence="BSD-3-Clause", name="phantom-hr")
SIZE = (3072, 2560)
NAME = "demo"
ABOUT = (
    "Trained on synthetic phantom slides (napari_lrmil.core.phantom) for demonstration and tests. It knows phantoms, "
    "not tissue: on a real slide its answer means nothing. No third-party weights are inside."
)
SEEDS = {"train": 11_000, "val": 12_000, "test": 13_000}


def main() -> None:
    """Run the missing steps."""
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--out", type=Path, required=True, help="folder for cohort, run and bundle")
    p.add_argument(
        "--slides", type=lambda t: tuple(map(int, t.split(","))), default=(80, 30, 100), help="train,val,test"
    )
    p.add_argument("--test-seed", type=int, default=SEEDS["test"], help="seed of the test slides")
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--ship", action="store_true", help="copy the bundle into the package")
    args = p.parse_args()
    began = time.process_time()
    leave_core_free()
    device = resolve_device("cpu")
    encoder = args.out / f"{SPEC.name}.safetensors"
    if not encoder.exists():
        show_progress(_returned(pretrain(args.out, SPEC, PretrainConfig(), device)), "encoder", quiet=False)
    cohort = _cohort(args)
    values = load_config("demo").model_dump()
    values |= {"name": NAME, "about": ABOUT, "intended_use": "phantoms only"}
    values["encoder"]["teacher"] = str(encoder)
    show_progress(train(cohort, args.out / "run", build_config(values), device), "demo", quiet=False)
    print(table(json.loads((args.out / "run" / METRICS).read_text())))
    print(f"CPU-seconds of this process: {time.process_time() - began:.0f}")
    if args.ship:
        shutil.copytree(args.out / "run" / "bundle", SHIPPED / NAME, dirs_exist_ok=True)


def _cohort(args: argparse.Namespace) -> Path:
    folder: Path = args.out / "cohort"
    for (split, seed), count in zip((SEEDS | {"test": args.test_seed}).items(), args.slides, strict=True):
        done = folder / f".{split}.done"
        if count and not done.exists():
            show_progress(make_cohort(folder, count, SIZE, seed, split=split, workers=args.workers), split)
            done.touch()
    return folder / "cohort.csv"


def _returned(work: Generator[Event, None, Any]) -> Generator[Event, None, None]:
    yield Finished((yield from work))


def table(metrics: dict[str, Any]) -> str:
    """Return the test metrics as a Markdown table."""
    lines = [
        "| method | AUROC (95 %) | less teacher | less labels only | ρ with teacher | lesion AUROC | patches a slide |",
        "|---|---|---|---|---|---|---|",
    ]
    for method, splits in metrics.items():
        f = splits["test"]
        a, paired = f["auroc"], f["paired"]
        cells = [
            f"{a['value']:.3f} ({_number(a['low'])} to {_number(a['high'])})",
            *(_difference(paired.get(other)) for other in ("teacher", "labels_only")),
            "" if f["agreement"] is None else _number(f["agreement"]["spearman"]),
            _number(f["lesion_auroc"]),
            f"{f['cost']['patches_per_slide']:.0f}",
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _difference(paired: dict[str, float | None] | None) -> str:
    if paired is None:
        return ""
    return f"{paired['value']:+.3f} ({_number(paired['low'])} to {_number(paired['high'])})"


if __name__ == "__main__":
    main()
