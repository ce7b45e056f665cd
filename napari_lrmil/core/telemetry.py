"""Usage reports of other libraries, switched off: this program sends nothing to anybody.

The switches must be set before the libraries are imported.
"""

from __future__ import annotations

import os
import sys

SWITCHES = {
    "DO_NOT_TRACK": "1",  # huggingface_hub, mlflow and others
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def block_telemetry() -> None:
    """Switch off the usage reports of libraries that are imported later, unless the user has set a switch.

    `import openvino` starts a process that sends a report, and writes a folder ``intel`` into the user's home.
    OpenVINO has no switch in the environment. It uses a stub of its own if its reporting package cannot be imported.
    """
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None makes its import fail
