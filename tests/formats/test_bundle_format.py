"""Bundles: the keys of lrmil.json, the tensors of the weights, and the hash that tells a model from any other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from napari_lrmil.core.errors import BundleError
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.networks import load_tensors
from support.networks import untrained_bundle
from support.shapes import STORED, mismatches

BUNDLE = STORED / "run" / "bundle"
SHA256 = "7a080fd505f90b9d51964820ff808628a7ba655b909dd7a0cd521a77bcc5e977"

ENCODER = {"family": str, "settings": dict, "licence": str, "name": str, "mean": [float], "deviation": [float]}
NETWORK = {
    "encoder": ENCODER | {"settings": {str: (int, float, bool)}},
    "dim": int,
    "hidden": int,
    "encoder_sha256": str,
}
CARD: dict[str, Any] = {
    "schema_version": int,
    "name": str,
    "about": str,
    "version": str,
    "classes": [str],
    "hr_mpp": float,
    "lr_mpp": float,
    "hr_patch_px": int,
    "lr_patch_px": int,
    "student_input_px": (int, None),
    "normalisation": str,
    "licence": str,
    "tissue": {
        "mask_um": float,
        "lowest_chroma": float,
        "highest_chroma": float,
        "darkest": float,
        "smallest_um2": float,
        "min_share": float,
    },
    "temperature": (float, None),
    "teacher_temperature": (float, None),
    "student": NETWORK,
    "teacher": (NETWORK, None),
    "cohort": {str: str},
    "metrics": {str: str},
    "colour": (
        {"mean": [float], "deviation": [float], "mean_spread": [float], "deviation_spread": [float], "slides": int},
        None,
    ),
    "hashes": {str: str},
}
MIL = {
    "mil.mean",
    "mil.deviation",
    "mil.V.weight",
    "mil.V.bias",
    "mil.U.weight",
    "mil.U.bias",
    "mil.w.weight",
    "mil.classifier.weight",
    "mil.classifier.bias",
}


def card_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "lrmil.json").read_text(encoding="utf-8"))
    return content


def test_files_of_a_bundle(tmp_path: Path) -> None:
    untrained_bundle(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "lrmil.json",
        "student.safetensors",
        "teacher.safetensors",
        "README.md",
    }


def test_keys_of_the_card(tmp_path: Path) -> None:
    """A version 1 card has no other: an older program refuses a key that it does not know."""
    untrained_bundle(tmp_path / "whole")
    untrained_bundle(tmp_path / "alone", teacher=False)
    for folder in (BUNDLE, tmp_path / "whole", tmp_path / "alone"):
        assert mismatches(card_of(folder), CARD) == []
    assert card_of(tmp_path / "whole")["schema_version"] == 1
    assert set(card_of(tmp_path / "whole")["hashes"]) == {"student.safetensors", "teacher.safetensors"}


def test_tensors_of_the_weights(tmp_path: Path) -> None:
    """Nothing but names and shapes tells which tensor is which."""
    stored, written = Bundle(BUNDLE), untrained_bundle(tmp_path)
    for bundle in (stored, written):
        student, teacher = (
            set(load_tensors(bundle, "student.safetensors")),
            set(load_tensors(bundle, "teacher.safetensors")),
        )
        assert {name for name in student if not name.startswith("encoder.encoder.net.")} == MIL | {
            "encoder.mean",
            "encoder.deviation",
        }
        assert {name for name in teacher if not name.startswith("encoder.net.")} == MIL


def test_the_stored_bundle_keeps_its_hash() -> None:
    """Predictions, caches and paces are kept under it."""
    assert Bundle(BUNDLE).sha256 == SHA256


def test_the_stored_bundle_opens() -> None:
    bundle = Bundle(BUNDLE)
    assert (bundle.name, bundle.card.version, bundle.card.classes) == ("phantoms-v0-1", "0.1.0", ("normal", "lesion"))
    assert (bundle.card.plan.hr_um, bundle.card.plan.lr_um, bundle.card.plan.n) == (16, 64, 4)
    assert bundle.card.temperature == pytest.approx(0.5133327614719392) and bundle.card.teacher_temperature is None
    assert (bundle.student.encoder.dim, bundle.student.mil.hidden) == (128, 64)
    assert (bundle.teacher.encoder.dim, bundle.teacher.mil.hidden) == (128, 64)


def test_a_bundle_of_a_newer_schema_is_refused_with_both_versions(tmp_path: Path) -> None:
    shutil.copytree(BUNDLE, tmp_path / "newer")
    content = card_of(tmp_path / "newer") | {"schema_version": 2, "new_key": 1}
    (tmp_path / "newer" / "lrmil.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(BundleError, match="schema version 2, this program reads 1"):
        Bundle(tmp_path / "newer")
