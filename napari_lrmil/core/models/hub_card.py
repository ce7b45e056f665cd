"""Files of a bundle as a repository on the hub: model card with a YAML head, and the layout of PyTorchModelHubMixin."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
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
# As training writes a metric into the card: `student, test: AUROC`, `0.912 (0.880 to 0.940), 100 slides`.
METRIC = re.compile(r"student, (?P<split>val|test): (?P<name>AUROC)$")
VALUE = re.compile(r"(?P<value>\d\.\d+)(?P<rest>.*)")


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
    sections = (card_text(card, limits), _intended_use(card), _usage(card, name), _licence(card, terms))
    return "\n".join((f"---\n{head}---\n", *sections))


def _head(card: Card, terms: SharingTerms) -> dict[str, Any]:
    head: dict[str, Any] = {"license": terms.hub_id}
    if terms.hub_id == "other":
        head["license_name"] = ", ".join(terms.licences)
    head |= {"library_name": "napari-lrmil", "pipeline_tag": "image-classification", "tags": list(TAGS)}
    metrics = list(_index_metrics(card))
    if metrics:
        head["model-index"] = [{"name": card.name, "results": metrics}]
    return head


def _index_metrics(card: Card) -> Iterator[dict[str, Any]]:
    """Yield the student's figures as the hub's index of results has them."""
    for key, text in card.metrics.items():
        name, value = METRIC.match(str(key)), VALUE.match(str(text))
        if name is None or value is None:
            continue
        metric = {"type": "roc_auc", "name": f"{name['name']}{value['rest']}", "value": float(value["value"])}
        dataset = {"type": "private", "name": f"{name['split']} slides of the training cohort"}
        yield {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": [metric]}


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
