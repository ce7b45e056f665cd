"""Modules that workers of a prediction need, imported once in the process that they are forked from.

The package imports libraries where it uses them, so a worker would import them with its first slide. No import here may
start a thread, because a fork would copy its locks without it.
"""

# ruff: noqa: F401
from importlib.util import find_spec

import h5py
import openslide
import platformdirs.unix
import safetensors
import tifffile
from imagecodecs import jpeg8_decode, png_encode
from PIL import ImageFile

import napari_lrmil.core.cohort.predict_task
from napari_lrmil.core.telemetry import block_telemetry

block_telemetry()  # OpenVINO would report its import from a thread
if find_spec("openvino") is not None:
    import openvino
