"""Input of one network: its patches, its weights, and the request by which a runtime for it is chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from napari_lrmil.core.features.extraction import PatchSet
from napari_lrmil.core.geometry import Int64
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.card import Card
from napari_lrmil.core.models.pooling import AggregatorWeights
from napari_lrmil.core.patching.grid import NestedGrid
from napari_lrmil.core.patching.stain import StainTransform
from napari_lrmil.core.runtimes.select import MIN_CHECK_PATCHES, RuntimeRequest, evenly_spaced_rows, is_converted
from napari_lrmil.core.slides.slide import Slide

if TYPE_CHECKING:
    import torch

    from napari_lrmil.core.models.networks import StudentNetwork, TeacherNetwork


@dataclass(frozen=True)
class NetworkInput:
    """Patches that one network reads.

    Attributes
    ----------
    stage
        Name of the stage in progress events.
    network
        ``student`` or ``teacher``.
    patches
        Corners and size of the patches.
    index
        (N, 2) column and row of each patch on its grid.
    temperature
        Calibration temperature of the network's logits; None if it has none.
    target_mpp
        µm per pixel that the network sees.
    """

    stage: str
    network: str
    patches: PatchSet
    index: Int64
    temperature: float | None
    target_mpp: float


def student_input(card: Card, grid: NestedGrid, stain: StainTransform | None = None) -> NetworkInput:
    """Return the LR patches of a grid, for the student."""
    patches = PatchSet(grid.lr_corners, grid.lattice.lr_cell, card.lr_patch_px, card.student_input_px, stain)
    return NetworkInput("student (LR)", "student", patches, grid.lr_index, card.temperature, card.lr_mpp)


def teacher_input(card: Card, grid: NestedGrid, stain: StainTransform | None = None) -> NetworkInput:
    """Return the HR patches of a grid, for the teacher."""
    patches = PatchSet(grid.hr_corners, grid.lattice.cell, card.hr_patch_px, stain=stain)
    return NetworkInput("teacher (HR)", "teacher", patches, grid.hr_index, card.teacher_temperature, card.hr_mpp)


def runtime_request(slide: Slide, bundle: Bundle, read: NetworkInput, device: str | torch.device) -> RuntimeRequest:
    """Return the network with a sample of the slide's patches, on which runtimes are compared."""
    patches = read.patches
    sample = replace(patches, corners=patches.corners[evenly_spaced_rows(len(patches), patches.side)])
    request = _blank_request(bundle, read.network, device)
    # The pixels are read only if no earlier check of this runtime is on disk.
    return replace(
        request,
        side=patches.side,
        temperature=read.temperature,
        patches=len(patches),
        pixels=lambda: sample.read(slide, slice(None)),
    )


def _blank_request(bundle: Bundle, network: str, device: str | torch.device) -> RuntimeRequest:
    """Return the request for a network of a bundle before any slide is known."""
    card, is_teacher = bundle.card, network == "teacher"
    side = card.hr_patch_px if is_teacher else card.student_input_px or card.lr_patch_px

    def load() -> StudentNetwork | TeacherNetwork:
        return (bundle.teacher if is_teacher else bundle.student).to(device)

    return RuntimeRequest(
        load=load,
        mil=mil_weights(bundle, network),
        family=(bundle.require_teacher() if is_teacher else card.student).encoder.family,
        device=device,
        identity=f"{bundle.sha256} {network}",
        side=side,
        temperature=None,
        patches=MIN_CHECK_PATCHES,
        pixels=lambda: np.empty((0, side, side, 3), np.uint8),
        prepared=bundle.prepared,
    )


def is_network_converted(bundle: Bundle, network: str, device: str | torch.device, runtime: str) -> bool:
    """Return whether a network of a bundle runs on this machine without being built in torch.

    Raises
    ------
    BundleError
        If the weights are missing or altered.
    """
    return is_converted(runtime, _blank_request(bundle, network, device))


def mil_weights(bundle: Bundle, network: str) -> AggregatorWeights:
    """Return the weights of the MIL of ``student`` or ``teacher``."""
    return bundle.teacher_mil if network == "teacher" else bundle.student_mil
