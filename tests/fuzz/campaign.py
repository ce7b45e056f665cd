"""Campaign of mutated files: children that may die, a watch over them, and the table of what came of it.

``python -m fuzz.campaign --help`` in the folder ``tests``.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuzz.inputs import INPUTS, NUMBERS, RIGHT, SAID, SLIDE_KINDS, is_available

HANG_S, START_S = 20, 240  # for a file; for the libraries and the undamaged files
GOOD = (RIGHT, SAID)
PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "reliability.md"
BEGIN, END = "<!-- fuzz: begin -->", "<!-- fuzz: end -->"
TESTS = Path(__file__).parents[1]


@dataclass
class Tally:
    """Outcomes of one kind of input."""

    name: str
    outcomes: Counter[str] = field(default_factory=Counter)
    decoded: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    cpu: float = 0.0

    def add(self, result: Mapping[str, Any]) -> None:
        """Count a result of a child."""
        self.outcomes[result["outcome"]] += 1
        self.decoded += bool(result.get("decoded"))
        self.cpu += result.get("cpu", 0.0)
        if result["outcome"] not in GOOD:
            self.failures.append(dict(result))

    @property
    def tried(self) -> int:
        """Number of files."""
        return self.outcomes.total()

    @property
    def cells(self) -> tuple[str, ...]:
        """Row of the table."""
        decoded = f"{100 * self.decoded / max(self.tried, 1):.0f} %" if self.name in SLIDE_KINDS else "–"
        right, said = (self.outcomes[name] for name in GOOD)
        return self.name, f"{self.tried:,}", f"{right:,}", f"{said:,}", f"{len(self.failures):,}", decoded


def run_inputs(name: str, folder: Path, numbers: range) -> Tally:
    """Answer mutated files of one kind. A file that ends or hangs its process is a failure; the next goes on."""
    tally, first = Tally(name), numbers.start
    while first < numbers.stop:
        begun: dict[str, Any] = {}
        for line in _watch_child(name, folder, range(first, numbers.stop)):
            if "outcome" in line:
                tally.add(begun | line)
            else:
                begun = line
        if not begun:
            log = (folder / "child.log").read_text(errors="replace")
            raise RuntimeError(f"the process for {name} did not start:\n{log[-3000:]}")
        first = begun["index"] + 1
    return tally


def _watch_child(name: str, folder: Path, numbers: range) -> Iterator[dict[str, Any]]:
    """Yield what a child says; last its death or hang, if it did not finish the file that it began."""
    folder.mkdir(parents=True, exist_ok=True)
    call = [sys.executable, "-m", "fuzz.child", name, str(folder), str(numbers.start), str(numbers.stop)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    paths = (str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")]))
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    with (folder / "child.log").open("w+b") as log:
        child = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=log, env=environment)
    is_open = False
    try:
        for line in _lines(child):
            is_open = "outcome" not in line
            yield line
    except TimeoutError:
        child.kill()
        yield {"outcome": "hang", "text": f"no answer within {HANG_S} s"}
        is_open = False
    finally:
        _end(child)
        assert child.stdout is not None
        child.stdout.close()
    if is_open:
        code = child.returncode
        yield {"outcome": "crash", "text": signal.Signals(-code).name if code < 0 else f"exit code {code}"}


def _end(child: subprocess.Popen[bytes]) -> None:
    """Wait for a child that has closed its output; kill one that goes on without it."""
    try:
        child.wait(HANG_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _lines(child: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the JSON lines of a child; raise `TimeoutError` if one takes too long."""
    assert child.stdout is not None
    limit, buffer = START_S, b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(limit):
                raise TimeoutError
            chunk = os.read(child.stdout.fileno(), 1 << 16)
            if not chunk:
                return
            *complete, buffer = (buffer + chunk).split(b"\n")
            for line in complete:
                yield json.loads(line)
            limit = HANG_S


# ---------------------------------------------------------------- table

HEAD = ("kind of input", "tried", "right", "said", "failed", "pixels decoded")


def format_table(rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [HEAD, ("---", *["---:"] * (len(HEAD) - 1)), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_page(table: str) -> None:
    """Put a table between the markers of the page on reliability."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


def describe(failure: Mapping[str, Any]) -> str:
    """Return a failure in a few lines, with the number that repeats it."""
    return f"{failure['index']}: {failure['outcome']} after {failure.get('note', '?')}\n{failure['text'][-1500:]}"


def main() -> None:
    """Run the campaign. Results of every kind are kept, so that a call after an interruption goes on."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("kinds", nargs="*", default=list(INPUTS), help=f"of {', '.join(INPUTS)}; all if none is named")
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="for results and mutated files")
    parser.add_argument("--only", type=int, help="repeat the file of this number, and leave it in the folder")
    parser.add_argument("--write", action="store_true", help="write the table into the page on reliability")
    call = parser.parse_args()
    tallies = [_kept(name, call.folder, call.only) for name in call.kinds if is_available(name)]
    table = format_table(tally.cells for tally in tallies)
    print(table)  # noqa: T201
    for tally in tallies:
        print(f"\n{tally.name}: {tally.cpu:.0f} CPU seconds", *map(describe, tally.failures), sep="\n")  # noqa: T201
    if call.write:
        write_page(table)
    sys.exit(any(tally.failures for tally in tallies))


def _kept(name: str, folder: Path, only: int | None) -> Tally:
    """Return the results of a kind: those of an earlier call, or new ones."""
    if only is not None:
        return run_inputs(name, folder / name, range(only, only + 1))
    file, tally = folder / f"{name}.json", Tally(name)
    if file.exists():
        content = json.loads(file.read_text())
        tally.outcomes.update(content["outcomes"])
        tally.decoded, tally.failures, tally.cpu = content["decoded"], content["failures"], content["cpu"]
        return tally
    tally = run_inputs(name, folder / name, range(NUMBERS[name]))
    values = {"outcomes": tally.outcomes, "decoded": tally.decoded, "failures": tally.failures, "cpu": tally.cpu}
    file.write_text(json.dumps(values))
    return tally


if __name__ == "__main__":
    main()
