"""Process that answers a range of mutated files, and says in JSON lines which file it has begun and what came of it."""

from __future__ import annotations

import json
import os
import re
import resource
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import IO, Any

from fuzz.inputs import INPUTS, SAID, Inputs
from fuzz.mutation import Mutation
from support.fake_slides import one_sentence

MAX_BYTES = 2 * 2**30  # resident
ADDRESS_SPACE = 12 * 2**30  # beyond it an allocation fails, before it can stop the machine
RESET_PEAK = "5"


def main() -> None:
    """Answer the files of the kind, folder, first number and last number in the arguments."""
    name, folder, first, stop = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.excepthook = lambda told: traceback.print_exception(told.exc_value)
    warnings.simplefilter("ignore")
    inputs = INPUTS[name](folder)
    _warm_up(inputs)
    for index in range(first, stop):
        path, mutation = inputs.mutate(index)
        _say(lines, index=index, kind=mutation.kind, note=mutation.note)
        _say(lines, **_outcome(inputs, path, mutation))


def _say(lines: IO[str], **values: Any) -> None:
    lines.write(json.dumps(values) + "\n")


def _warm_up(inputs: Inputs) -> None:
    """Load libraries and read undamaged files, so that no mutated file is charged with it."""
    for seed in getattr(inputs, "seeds", ()):
        inputs._undamaged(seed)  # type: ignore[attr-defined]


def _outcome(inputs: Inputs, path: Path, mutation: Mutation) -> dict[str, Any]:
    """Return what came of a file: ``right``, ``said``, or a kind of failure with its text."""
    from napari_lrmil.core.errors import LrmilError

    Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    began, stderr_at = time.process_time(), os.lseek(2, 0, os.SEEK_CUR)
    text, has_decoded = "", False
    try:
        answer = inputs.answer(path, mutation)
        outcome, text, has_decoded = answer.outcome, answer.text, answer.has_decoded
    except LrmilError as error:
        text, has_decoded = str(error), inputs.has_decoded
        outcome = SAID if one_sentence(error) else "not a sentence"
    except MemoryError:
        outcome = "memory"
    except Exception as error:
        has_decoded = inputs.has_decoded
        # The command line has a sentence for what the system refuses.
        outcome = SAID if isinstance(error, OSError) and error.errno is not None else "traceback"
        text = "".join(traceback.format_exception(error))[-3000:]
    if outcome in ("right", SAID):
        outcome, text = _hidden_failure(stderr_at) or (outcome, text)
    return {"outcome": outcome, "text": text, "decoded": has_decoded, "cpu": time.process_time() - began}


def _hidden_failure(stderr_at: int) -> tuple[str, str] | None:
    """Return a failure that the answer did not show: memory, or a traceback of a thread."""
    status = Path("/proc/self/status").read_text()
    peak = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024
    if peak > MAX_BYTES:
        return "memory", f"{peak / 2**30:.1f} GB"
    size = os.fstat(2).st_size
    printed = os.pread(2, size - stderr_at, stderr_at).decode(errors="replace") if size > stderr_at else ""
    return ("traceback", printed[-3000:]) if "Traceback" in printed else None


if __name__ == "__main__":
    main()
