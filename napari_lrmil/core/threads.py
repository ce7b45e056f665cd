"""Number of CPU threads that this process computes with: one setting for torch and for other runtimes.

Torch is not imported here, because a prediction by OpenVINO does without it. Torch that is loaded later takes the
number from the environment.
"""

from __future__ import annotations

import os
import sys

from napari_lrmil.core.site_settings import most_threads

_VARIABLE = "OMP_NUM_THREADS"  # torch reads it when it is imported, and so do other libraries that use OpenMP


def compute_threads() -> int:
    """Return the number of threads: torch's if it is loaded, else that of `set_compute_threads` or of the machine."""
    if (torch := sys.modules.get("torch")) is not None:
        return int(torch.get_num_threads())
    stated = os.environ.get(_VARIABLE, "")
    return int(stated) if stated.isdigit() and int(stated) > 0 else os.cpu_count() or 1


def set_compute_threads(threads: int) -> None:
    """Set the number of threads of computations that start later in this process."""
    os.environ[_VARIABLE] = str(threads)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)


def leave_core_free() -> None:
    """Compute with all cores but one, or with as many threads as the site allows, for the whole process.

    Programs call it at their start. With one thread per core on a busy machine, threads mostly wait for the slowest,
    and the window needs a core too.
    """
    set_compute_threads(most_threads() or max(1, (os.cpu_count() or 2) - 1))
