"""A training that is killed with SIGKILL in one of its stages and then goes on in this process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lrmil_training.config import build_config
from lrmil_training.train import train
from napari_lrmil.core.events import Event, Metric

CHILD = """
import json, sys, torch
from pathlib import Path
from lrmil_training.config import build_config
from lrmil_training.train import train
from napari_lrmil.core.events import Metric, Progress
if __name__ == "__main__":
    cohort, out, settings = sys.argv[1:]
    for event in train(Path(cohort), Path(out), build_config(json.loads(settings)), torch.device("cpu")):
        if isinstance(event, Metric):
            print(event.stage, event.step, flush=True)
        elif isinstance(event, Progress) and event.unit == "epochs":
            print(event.stage, "after", event.done, flush=True)
"""


def resume_killed_training(cohort: Path, folder: Path, settings: Mapping[str, Any], reached: str) -> list[Event]:
    """Kill a training as soon as it has printed a line, go on with it, and return the events of the second attempt.

    Parameters
    ----------
    cohort, folder
        Table and run folder.
    settings
        Configuration keys, ready for JSON.
    reached
        The line: stage and epoch of a metric, as in ``stage2 1``, or epochs that are over, as in ``selection after 4``.
    """
    call = [sys.executable, "-c", CHILD, str(cohort), str(folder), json.dumps(settings)]
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == reached:
                process.kill()
    assert process.returncode == -signal.SIGKILL and not (folder / "metrics.json").exists()
    return list(train(cohort, folder, build_config(settings), torch.device("cpu")))


def assert_epochs_not_repeated(events: list[Event], stage: str) -> None:
    """Check that the second attempt went on in the middle of a stage: its first epoch is not fitted again."""
    shown = [e.step for e in events if isinstance(e, Metric) and e.stage == stage and e.name.startswith("val/")]
    assert shown and min(shown) > 0
