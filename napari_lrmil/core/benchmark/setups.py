"""The setups that are compared: each differs from the one before it in one thing, so that each thing's gain is seen."""

from __future__ import annotations

from dataclasses import dataclass

PIL, OPENSLIDE, FAST = "OpenSlide through PIL", "openslide", "auto"
RESNET, STUDENT, OWN_TEACHER = "ResNet-50", "the student's", "the teacher's"


@dataclass(frozen=True)
class Setup:
    """One way from a slide to its answer.

    Attributes
    ----------
    name
        For people.
    changed
        What differs from the setup before it; empty where it stands by itself.
    fine
        Whether it reads HR patches, all of them; else LR patches.
    encoder
        Whose encoder: `RESNET` with weights that nobody trained, for its cost alone; `STUDENT`; or `OWN_TEACHER`.
    reader
        `PIL`; `OPENSLIDE`, our reading through it; or `FAST`, what `predict` takes.
    runtime
        As in `predict`: ``torch``, ``openvino`` or ``auto``.
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
CHAIN = (BASELINE, HR_TORCH, HR_READER, HR_STUDENT, LR)  # from the most expensive to ours
REFERENCE_SETUPS = (HR_OPENSLIDE, LR_TORCH)  # the gain of resolution once more, on the reference path
