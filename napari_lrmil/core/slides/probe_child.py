"""Script of the probing process: it opens slide files with OpenSlide before any other process does.

It reads a request, a JSON object, from each line of its input and writes one line for each. It imports OpenSlide and
nothing of this package, so that it starts in a twentieth of a second.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
from contextlib import suppress

READY, DONE = "ready", "done"
REGION = 16  # px a side, read from each level
MAX_BYTES = 8 * 2**30  # of address space
NO_DIALOGS = 0x0001 | 0x0002  # Windows: SEM_FAILCRITICALERRORS, SEM_NOGPFAULTERRORBOX


def probe(path: str) -> None:
    """Open a file and read its properties and a small region of each level; an exception is no crash."""
    import openslide

    # The caller opens the file as well and raises what is raised here.
    with suppress(Exception), openslide.OpenSlide(path) as slide:
        dict(slide.properties)
        list(slide.associated_images)
        for level in range(slide.level_count):
            slide.read_region((0, 0), level, (REGION, REGION))


def serve(limit_s: float) -> None:
    """Answer requests until the input ends."""
    _prepare()
    import openslide  # noqa: F401  # an import that fails ends the process before it is ready

    # Libraries must not write into the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    print(READY, file=answers, flush=True)
    for line in sys.stdin:
        # The caller ends a process that hangs. Should the caller be gone, the process ends itself.
        faulthandler.dump_traceback_later(2 * limit_s, exit=True)
        probe(json.loads(line)["path"])
        faulthandler.cancel_dump_traceback_later()
        print(DONE, file=answers, flush=True)


def _prepare() -> None:
    """Ignore Ctrl-C, which is for the caller, and leave neither core files nor dialogs when the process crashes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "win32":
        import ctypes

        ctypes.windll.kernel32.SetErrorMode(NO_DIALOGS)
        return
    import resource

    for kind, limit in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, MAX_BYTES)):
        with suppress(OSError, ValueError):  # a lower limit is set already, or the system has none
            resource.setrlimit(kind, (limit, resource.getrlimit(kind)[1]))


if __name__ == "__main__":
    serve(float(sys.argv[1]))
