"""Peak memory of training on few and on many slides; it must not grow with the cohort, as features stay on disk.

    python benchmarks/memory.py --out FOLDER [--slides 10,100]

Prints one row per cohort: slides, features on disk, peak of the private memory (RssAnon), and peak of the resident
memory, which includes file pages that the system can drop.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from pathlib import Path

EVERY_S = 0.05  # sampling interval
SETTINGS = {
    "hr_patch_px": 64,
    "lr_patch_px": 64,
    "bootstrap": 100,
    "teacher": {"epochs": 4, "min_epochs": 1},
    "stage1": {"epochs": 1, "patches_per_slide": 8},  # enough for a full batch with ten slides
    "stage2": {"epochs": 4, "min_epochs": 1},
    "stage3": {"epochs": 1, "min_epochs": 1, "patches_per_slide": 8, "lr": [1e-4]},
    "baselines": [],
}


def main() -> None:
    """Measure each cohort in a process of its own."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="folder for cohorts and runs")
    p.add_argument("--slides", type=lambda t: [int(n) for n in t.split(",")], default=[10, 100])
    p.add_argument("--only", type=int, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.only:
        measure(args.out, args.only)
        return
    print("| slides | features on disk | own memory, peak | resident, peak |\n|---|---|---|---|")
    for count in args.slides:
        command = [sys.executable, __file__, "--out", str(args.out), "--only", str(count)]
        subprocess.run(command, check=True)


def measure(out: Path, count: int) -> None:
    """Train on `count` phantom slides with a full-width encoder and print the row."""
    import torch

    from lrmil_training.config import build_config
    from lrmil_training.train import train
    from napari_lrmil.core.encoders import EncoderSpec, build_encoder, round_to_half, save_encoder
    from napari_lrmil.core.phantom import make_cohort

    torch.manual_seed(0)
    encoder = build_encoder(EncoderSpec(name="untrained", licence="BSD-3-Clause"))
    round_to_half(encoder)
    save_encoder(out / "untrained.safetensors", encoder)
    del encoder
    cohort, run = out / f"cohort_{count}", out / f"run_{count}"
    tenth = max(2, count // 5)
    for split, slides, seed in (("train", count - 2 * tenth, 1), ("val", tenth, 2), ("test", tenth, 3)):
        if not list(cohort.glob(f"{split}*.tif")):
            list(make_cohort(cohort, slides, (1536, 1024), seed, split=split))
    config = build_config(SETTINGS | {"encoder": {"teacher": str(out / "untrained.safetensors")}})
    peak = Peak()
    for _ in train(cohort / "cohort.csv", run, config, torch.device("cpu")):
        pass
    own, resident = peak.stop()
    stored = sum(file.stat().st_size for file in (run / "features").rglob("*.h5")) / 2**20
    print(f"| {count} | {stored:.0f} MB | {own:.0f} MB | {resident:.0f} MB |", flush=True)


class Peak:
    """Sampler of the peak memory of this process, in MB."""

    def __init__(self) -> None:
        self._own, self._resident, self._going = 0.0, 0.0, True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while self._going:
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self._own = max(self._own, int(status["RssAnon"].split()[0]) / 1024)
            self._resident = max(self._resident, int(status["VmRSS"].split()[0]) / 1024)
            time.sleep(EVERY_S)

    def stop(self) -> tuple[float, float]:
        """Return both peaks."""
        self._going = False
        self._thread.join()
        return self._own, self._resident


if __name__ == "__main__":
    main()
