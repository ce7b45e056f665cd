"""Program that holds a run folder and writes epochs like a training run, until a stop is requested."""

CHILD = """
import sys, time, pathlib
from lrmil_training.runs.event_log import EventLog
from lrmil_training.runs.lock import acquire_run_lock, is_stop_requested
from napari_lrmil.core.events import Finished, Progress
out = pathlib.Path(sys.argv[1])
with acquire_run_lock(out), EventLog(out) as log:
    for i in range(6000):
        log.write(Progress("teacher", i + 1, 6000, "epochs"))
        time.sleep(0.05)
        if is_stop_requested(out):
            print("error: stopped as asked")
            sys.exit(1)
"""
