"""Export of a student's patch classifier as TorchScript with the ``config.json`` of WSInfer."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from napari_lrmil.core.atomic_files import atomic_write, write_json, write_text
from napari_lrmil.core.encoders import AlignedEncoder
from napari_lrmil.core.errors import BundleError
from napari_lrmil.core.features.torch_encoding import resize_patches
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.card import README, STUDENT, Card, card_text
from napari_lrmil.core.models.mil import MIL
from napari_lrmil.core.models.networks import StudentNetwork

SCRIPT, CONFIG = "torchscript_model.pt", "config.json"
SPEC_VERSION = "1.0"  # of WSInfer's model-config.schema.json
MAX_DIFFERENCE = 1e-4  # of a logit, TorchScript against the bundle; rounding stays below 1e-5
CHECK_PATCHES = 3  # another number than the traced one, so that a batch size that became a constant is noticed


class PatchClassifier(nn.Module):
    """Class scores of patches as WSInfer prepares them: pixels of 0 to 1, less the mean, divided by the deviation.

    Pixels are rounded back to whole numbers first. Resizing and encoding then give what the bundle gives.

    Parameters
    ----------
    student
        The network.
    input_px
        Side to which patches are resized for the encoder; None does not resize.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, student: StudentNetwork, input_px: int | None) -> None:
        super().__init__()
        # A copy, because the student is shared and tracing must not touch it.
        network = copy.deepcopy(student)
        self.encoder: AlignedEncoder = network.encoder
        self.mil: MIL = network.mil
        self.input_px = input_px
        spec = student.encoder.spec
        for name, values in (("mean", spec.mean), ("deviation", spec.deviation)):
            self.register_buffer(name, torch.tensor(values).reshape(3, 1, 1))

    def forward(self, prepared: Tensor) -> Tensor:
        """Return (B, C) class scores of (B, 3, h, w) prepared patches."""
        pixels = ((prepared * self.deviation + self.mean) * 255).round().clamp(0, 255)
        return self.mil.patch_logits(self.encoder(resize_patches(pixels, self.input_px)).embedding)


def write_wsinfer_model(folder: Path, bundle: Bundle) -> tuple[str, ...]:
    """Write the patch classifier of a bundle's student for WSInfer: TorchScript, ``config.json`` and a README.

    Parameters
    ----------
    folder
        Target folder; its name is the model's name in QuPath.
    bundle
        The model. A teacher is not exported.

    Returns
    -------
    tuple of str
        What the exported model does not do, in sentences; they are in the README too.

    Raises
    ------
    BundleError
        If the network cannot be written as TorchScript, or its output then differs.
    """
    card = bundle.card
    module = PatchClassifier(bundle.student, card.student_input_px).eval().requires_grad_(False)
    script = _trace(bundle, module, card.lr_patch_px)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / SCRIPT) as partial:
        script.save(str(partial))
    missing = wsinfer_limits(card)
    write_text(folder / README, f"{card_text(card)}\n## In WSInfer\n\n" + "".join(f"- {text}\n" for text in missing))
    write_json(folder / CONFIG, wsinfer_config(card))
    return missing


def wsinfer_config(card: Card) -> dict[str, Any]:
    """Return the content of WSInfer's ``config.json`` for a student."""
    spec = card.student.encoder
    return {
        "spec_version": SPEC_VERSION,
        "architecture": spec.full_name,
        "num_classes": len(card.classes),
        "patch_size_pixels": card.lr_patch_px,
        "spacing_um_px": card.lr_mpp,
        "class_names": list(card.classes),
        "transform": [
            # QuPath's regions may be a pixel off. Resizing for the encoder is part of the network.
            {"name": "Resize", "arguments": {"size": card.lr_patch_px}},
            {"name": "ToTensor"},
            {"name": "Normalize", "arguments": {"mean": list(spec.mean), "std": list(spec.deviation)}},
        ],
    }


def wsinfer_limits(card: Card) -> tuple[str, ...]:
    """Return what a student does not do in WSInfer, in sentences."""
    stain = card.stain
    return (
        "Attention, evidence and the slide's probability need all patches of a slide; WSInfer gives class "
        "probabilities of each patch alone.",
        "Probabilities of patches are not calibrated: the model's calibration holds for whole slides.",
        "WSInfer finds tissue, places patches and averages pixels in its own way, so that probabilities differ a "
        "little from those of `export --format wsinfer`.",
        *(
            (
                f"The model normalises colour ({stain.method}) by each slide's tissue, which WSInfer cannot: results "
                "differ on slides of another colour than the training slides.",
            )
            if stain is not None
            else ()
        ),
    )


def _trace(bundle: Bundle, module: PatchClassifier, side: int) -> Any:
    """Return a module as TorchScript whose output on noise is that of the bundle; raises `BundleError`."""
    example = torch.zeros(1, 3, side, side)
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            # TorchScript is deprecated in favour of torch.export, but it is the one format that WSInfer reads.
            warnings.simplefilter("ignore")
            script: Any = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
            noise = torch.rand(CHECK_PATCHES, 3, side, side, generator=torch.Generator().manual_seed(0))
            difference = float((script(noise) - module(noise)).abs().max())
    except Exception as error:  # networks of transformers raise errors of any kind while they are traced
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise BundleError(
            bundle.path, STUDENT, f"the student cannot be written as TorchScript ({reason}); it stays in this program"
        ) from error
    if not difference <= MAX_DIFFERENCE:
        raise BundleError(
            bundle.path,
            STUDENT,
            f"the student as TorchScript differs by {difference:.2g} from itself, expected at most "
            f"{MAX_DIFFERENCE:g}; nothing was written",
        )
    return script
