"""Results of a GPU check: one JSON file, and the Markdown table made of it.

``results.json``::

    schema_version  1
    machine         device, torch, cuda, driver, python, cpu, …: the machine of the last call
    steps           name of a step -> outcome

Outcome of a step::

    status      done | failed | timed out | skipped
    seconds     wall seconds of the step
    device      name of the device that ran it
    size        full | small
    sources     hash of the program's source files
    result      figures of the step; each step documents its own. Absent if there are none
    memory      process_peak_mb; on a GPU also gpu_peak_mb (tensors) and gpu_reserved_mb (allocator)
    reason      why it was skipped, or how it failed (the end of the traceback)

Only the standard library is imported here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wheels import ROOT

SCHEMA_VERSION = 1
DONE, FAILED, TIMED_OUT, SKIPPED = "done", "failed", "timed out", "skipped"
RESULTS, TABLE = "results.json", "table.md"
LOSSES = ("ce", "bag", "soft", "hard", "attn", "layer", "patch")  # names of loss terms begin so
TRAINING = "training-"  # prefix of the steps that train, whose figures are compared
Outcome = dict[str, Any]


def hash_sources() -> str:
    """Return a hash of all Python files of the two packages."""
    digest = hashlib.sha256()
    for folder in (ROOT / "napari_lrmil", ROOT / "src_training"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


class Record:
    """Outcomes of the steps in a folder. Every change is written at once, so a killed run loses its last step only.

    Parameters
    ----------
    folder
        Folder of ``results.json`` and ``table.md``.
    size
        ``full`` or ``small``.
    """

    def __init__(self, folder: Path, size: str) -> None:
        self.folder, self.size = folder, size
        self.sources = hash_sources()
        self.machine: dict[str, Any] = {}
        path = folder / RESULTS
        self.steps: dict[str, Outcome] = json.loads(path.read_text(encoding="utf-8"))["steps"] if path.exists() else {}

    def is_done(self, name: str) -> bool:
        """Return whether an earlier call finished a step on the same device and with the same sizes."""
        outcome = self.steps.get(name, {})
        mark = (outcome.get("status"), outcome.get("device"), outcome.get("size"))
        return mark == (DONE, self.machine.get("device"), self.size)

    def store(self, name: str, outcome: Outcome) -> None:
        """Add the outcome of a step and write both files."""
        marks = {"device": self.machine.get("device"), "size": self.size, "sources": self.sources}
        self.steps[name] = outcome | marks
        content = {"schema_version": SCHEMA_VERSION, "machine": self.machine, "steps": self.steps}
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{RESULTS}.partial"
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
        os.replace(partial, self.folder / RESULTS)
        (self.folder / TABLE).write_text(render_table(content), encoding="utf-8")


# ---------------------------------------------------------------- table


def render_table(content: Mapping[str, Any]) -> str:
    """Return the Markdown page section of a result file: the machine, the outcome of each step, and its figures."""
    machine, steps = content["machine"], content["steps"]
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("torch", "cuda", "driver", "python") if machine.get(name)
    )
    lines = [f"**{machine.get('device', 'unknown device')}**, {versions}.", "", *_status_table(steps)]
    results = {name: outcome["result"] for name, outcome in steps.items() if "result" in outcome and name != "machine"}
    runs = {name: result for name, result in results.items() if name.startswith(TRAINING)}
    for name in (name for name in results if name not in runs):
        lines += ["", f"**{name}**", "", *_figures(results[name])]
    return "\n".join([*lines, *_training_table(runs), ""])


def _training_table(runs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield a table of the trainings, one column each, and their largest differences from the first one, the CPU's.

    Another seed shows how far apart two trainings are that differ by chance.
    """
    if not runs:
        return
    reference, *others = runs
    yield from ["", "**training**", "", f"| | {' | '.join(runs)} |", f"|---|{'---|' * len(runs)}"]
    for figure in runs[reference]:
        yield f"| {figure} | {' | '.join(_cell(run.get(figure, '')) for run in runs.values())} |"
    for name in others:
        gaps = {
            figure: abs(runs[name][figure] - value) / max(abs(value), 1e-9)
            for figure, value in runs[reference].items()
            if figure in runs[name] and figure.rpartition("/")[2].startswith(LOSSES)
        }
        if gaps:
            largest = max(gaps, key=lambda figure: gaps[figure])
            yield from ["", f"{name}: loss terms at most {100 * gaps[largest]:.2g} % from {reference} ({largest})."]


def _status_table(steps: Mapping[str, Outcome]) -> Iterator[str]:
    yield "| step | outcome | seconds | GPU memory, peak |"
    yield "|---|---|---|---|"
    for name, outcome in steps.items():
        reason = str(outcome.get("reason", "")).strip().splitlines()
        status = outcome["status"] + (f": {reason[-1]}" if reason else "")
        gpu = outcome.get("memory", {}).get("gpu_peak_mb")
        memory = "" if gpu is None else f"{gpu:.0f} MB"
        yield f"| {name} | {_cell(status)} | {outcome['seconds']:.1f} | {memory} |"


def _figures(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table of rows with equal columns if the values are rows, otherwise one of names and values."""
    rows = {name: value for name, value in result.items() if isinstance(value, Mapping)}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    if rows:
        yield f"| | {' | '.join(columns)} |"
        yield f"|---|{'---|' * len(columns)}"
        for name, row in rows.items():
            yield f"| {_cell(name)} | {' | '.join(_cell(row.get(column, '')) for column in columns)} |"
    values = {name: value for name, value in result.items() if name not in rows}
    if values:
        yield from [""] if rows else []
        yield "; ".join(f"{name}: {_cell(value)}" for name, value in values.items()) + "."


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value).replace("|", "/").replace("\n", " ")
