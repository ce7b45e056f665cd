"""Modules that workers of a prediction need, imported once in the process that they are forked from.

No import here may start a thread, because a fork would copy its locks without it.
"""

import sys
from importlib.util import find_spec

import napari_lrmil.core.cohort.predict_task  # noqa: F401

if find_spec("openvino") is not None:
    # At its import, OpenVINO sends telemetry from a thread. Without this module it sends none.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino  # noqa: F401
