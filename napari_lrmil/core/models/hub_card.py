"""Files of a bundle as a repository on the hub: model card with a YAML head, and the layout of PyTorchModelHubMixin."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from napari_lrmil.core.atomic_files import write_json, write_text
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.card import README, STUDENT, Card, card_text
from napari_lrmil.core.models.hub_bundle import BUNDLE_FILES
from napari_lrmil.core.models.limits import limits_lines
from napari_lrmil.core.models.sharing_terms import SharingTerms

CONFIG, WEIGHTS = "config.json", "model.safetensors"  # names that PyTorchModelHubMixin reads
REPOSITORY_FILES = (*BUNDLE_FILES, CONFIG, WEIGHTS)
TAGS = ("histopathology", "whole-slide-image", "multiple-instance-learning", "napari-lrmil")
# As training writes it into the card: `0.912 (0.880 to 0.940), 100 slides of 90 patients, interval over …`.
TEST_AUROC = "student, test: AUROC"
VALUE = re.compile(r"(?P<value>\d\.\d+) \((?P<low>\d\.\d+) to (?P<high>\d\.\d+)\), (?P<slides>\d+) slides(?P<rest>.*)")
FEWEST_TEST_SLIDES = 30  # as FEW_SLIDES of the command line: below, the AUROC of another sample would differ widely


def write_repository(folder: Path, bundle: Bundle, name: str, terms: SharingTerms) -> None:
    """Write the files of a repository into an empty folder. Of the bundle only `BUNDLE_FILES` are copied.

    ``config.json`` and ``model.safetensors`` are what ``PyTorchModelHubMixin`` reads: the student's architecture and
    weights. The hub stores the latter once, because ``student.safetensors`` has the same content.

    Parameters
    ----------
    folder
        Target folder.
    bundle
        The model; its files are verified.
    name
        ``owner/name`` of the repository.
    terms
        Licence of the repository.

    Raises
    ------
    BundleError
        If a file of the bundle is missing, damaged or of another model.
    """
    for file in bundle.card.hashes:
        bundle.verified_file(file)
    _ = bundle.limits, bundle.embedding_statistics, bundle.patient_embedding_statistics  # each raises if damaged
    for file in BUNDLE_FILES:
        if file != README and (bundle.path / file).is_file():
            shutil.copyfile(bundle.path / file, folder / file)
    shutil.copyfile(bundle.path / STUDENT, folder / WEIGHTS)
    write_json(folder / CONFIG, network_config(bundle.card))
    write_text(folder / README, hub_card_text(bundle, name, terms))


def network_config(card: Card) -> dict[str, Any]:
    """Return the content of ``config.json``: how the student's network is built."""
    student = card.model_dump(mode="json")["student"]
    return {
        "library_name": "napari-lrmil",
        "encoder": student["encoder"],
        "dim": card.student.dim,
        "hidden": card.student.hidden,
        "num_classes": len(card.classes),
        "top_share": card.student.top_share,
        "classes": list(card.classes),
        "mpp": card.lr_mpp,
        "patch_px": card.lr_patch_px,
        "input_px": card.student_input_px,
    }


def hub_card_text(bundle: Bundle, name: str, terms: SharingTerms) -> str:
    """Return the model card in Markdown, with the head that the hub reads."""
    card = bundle.card
    head = yaml.safe_dump(_head(card, terms), sort_keys=False, allow_unicode=True, width=1000)
    limits = limits_lines(bundle.limits) if bundle.limits is not None else ()
    sections = (
        card_text(card, limits),
        _index_note(card),
        _intended_use(card),
        _usage(card, name),
        _licence(card, terms),
    )
    return "\n".join((f"---\n{head}---\n", *sections))


def _head(card: Card, terms: SharingTerms) -> dict[str, Any]:
    head: dict[str, Any] = {"license": terms.hub_id}
    if terms.hub_id == "other":
        head["license_name"] = ", ".join(terms.licences)
    head |= {"library_name": "napari-lrmil", "pipeline_tag": "image-classification", "tags": list(TAGS)}
    result = _index_result(card)
    if isinstance(result, dict):
        head["model-index"] = [{"name": card.name, "results": [result]}]
    return head


def _index_result(card: Card) -> dict[str, Any] | str:
    """Return the student's AUROC on test slides for the hub's index of results, or why there is none.

    The index shows a figure without its text, so figures of validation slides, by which the model was chosen, and of
    few slides stay out of it.
    """
    if TEST_AUROC not in card.metrics:
        return "the AUROC of the student was not measured on test slides"
    match = VALUE.match(str(card.metrics[TEST_AUROC]))
    if match is None:
        return "its AUROC on test slides is stated without an interval or a number of slides"
    n_slides = int(match["slides"])
    if n_slides < FEWEST_TEST_SLIDES:
        return (
            f"its AUROC was measured on {n_slides} test slides, fewer than {FEWEST_TEST_SLIDES}, and that of another "
            "sample would differ widely"
        )
    low, high = float(match["low"]), float(match["high"])
    name = f"AUROC ({low:.3f} to {high:.3f}), {n_slides} slides{match['rest']}"
    args = {"n_slides": n_slides, "low": low, "high": high}
    return {
        "task": {"type": "image-classification"},
        "dataset": {"type": "private", "name": "test slides of the training cohort", "split": "test"},
        "metrics": [{"type": "roc_auc", "name": name, "value": float(match["value"]), "args": args}],
    }


def _index_note(card: Card) -> str:
    """Return the sentence on a card whose head has no figure; empty if it has one."""
    reason = _index_result(card)
    return f"\nThe hub's index of results has no figure of this model: {reason}.\n" if isinstance(reason, str) else ""


def _intended_use(card: Card) -> str:
    use = card.intended_use or "not stated by who trained it"
    return (
        f"\n## Intended use\n\n{use}. For research on slides like those of the training cohort: the same organ, stain, "
        f"question and a resolution of {card.lr_mpp:g} µm per pixel or finer. Not for diagnosis, and not for other "
        "tissue, on which the model answers with certainty all the same.\n"
    )


def _usage(card: Card, name: str) -> str:
    return (
        "## Use\n\n```sh\npip install napari-lrmil\n"
        f"napari-lrmil predict SLIDE --bundle hf:{name} --out OUT\n```\n\n"
        f"`lrmil.json` has the SHA-256 of the weights, and every result names the model. `{CONFIG}` and `{WEIGHTS}` "
        "hold the student for programs that read the layout of PyTorchModelHubMixin.\n"
    )


def _licence(card: Card, terms: SharingTerms) -> str:
    networks = {"student": card.student} | ({"teacher": card.teacher} if card.teacher is not None else {})
    lines = [f"- encoder of the {role}: {n.encoder.name}, {n.encoder.licence}" for role, n in networks.items()]
    return "\n".join(("## Licence", "", f"{', '.join(terms.licences)}, which derives from:", "", *lines, ""))
