"""Examination of an installation: what is there, what is missing, and whether the program computes what it should."""

from napari_lrmil.core.doctor.checks import FAILED, NOTE, OK, Check, run_checks

__all__ = ["FAILED", "NOTE", "OK", "Check", "run_checks"]
