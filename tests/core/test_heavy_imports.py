"""Threads that need a large library at once get it whole."""

from __future__ import annotations

import subprocess
import sys

THREADS = """
import sys, threading
from napari_lrmil.core.models.bundle import Bundle

bundles, start, errors = [Bundle("demo") for _ in range(4)], threading.Barrier(4), []

def load(bundle, network):
    start.wait()
    try:
        getattr(bundle, network)
    except BaseException as error:
        errors.append(repr(error))

sys.setswitchinterval(1e-5)  # threads take turns as often as possible
threads = [threading.Thread(target=load, args=(b, n)) for b, n in zip(bundles, ["student", "teacher"] * 2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert "torch" in sys.modules
assert not errors, errors
"""


def test_networks_are_loaded_by_several_threads_at_once_in_a_new_process() -> None:
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
