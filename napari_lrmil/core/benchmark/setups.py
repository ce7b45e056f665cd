"""Setups of the benchmark: each one of the chain differs from the previous one in a single part (an ablation)."""

from __future__ import annotations

from dataclasses import dataclass

PIL, OPENSLIDE, FAST = "OpenSlide through PIL", "openslide", "auto"
RESNET, STUDENT, OWN_TEACHER = "ResNet-50", "the student's", "the teacher's"


@dataclass(frozen=True)
class Setup:
    """Configuration of one measured pipeline, from slide to prediction.

    Attributes
    ----------
    name
        Name in tables.
    changed
        Part that differs from the previous setup; empty if the setup is not part of the chain.
    fine
        Whether it reads all HR patches; otherwise all LR patches.
    encoder
        `RESNET`, untrained and measured for its cost only; `STUDENT`; or `OWN_TEACHER`.
    reader
        `PIL`; `OPENSLIDE`, our patch reader on OpenSlide; or `FAST`, the default reader of `predict`.
    runtime
        Runtime as in `predict`: ``torch``, ``openvino`` or ``auto``.
    """

    name: str
    changed: str
    fine: bool
    encoder: str
    reader: str
    runtime: str


BASELINE = Setup("baseline pipeline", "", True, RESNET, PIL, "torch")
HR_TORCH = Setup("HR, the student's encoder", "encoder", True, STUDENT, PIL, "torch")
HR_READER = Setup("HR, fast reader", "reader", True, STUDENT, FAST, "torch")
HR_STUDENT = Setup("HR, fast runtime", "runtime", True, STUDENT, FAST, "auto")
LR = Setup("LR, predict defaults", "resolution", False, STUDENT, FAST, "auto")
LR_TORCH = Setup("LR, torch and OpenSlide", "", False, STUDENT, OPENSLIDE, "torch")
HR_OPENSLIDE = Setup("HR, torch and OpenSlide", "", True, STUDENT, OPENSLIDE, "torch")
TEACHER = Setup("HR, the bundle's teacher", "", True, OWN_TEACHER, FAST, "auto")
CHAIN = (BASELINE, HR_TORCH, HR_READER, HR_STUDENT, LR)  # from the most expensive setup to the defaults of predict
REFERENCE_SETUPS = (HR_OPENSLIDE, LR_TORCH)  # gain of resolution alone, on the reference reader and runtime
