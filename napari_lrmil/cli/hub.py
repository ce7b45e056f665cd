"""Commands on models: ``models`` lists and updates them, ``push`` shares one on the Hugging Face hub."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_lrmil.cli.console import out, print_notice, print_result
from napari_lrmil.core.formatting import format_size
from napari_lrmil.core.text_escapes import printable

if TYPE_CHECKING:
    from napari_lrmil.core.models.model_list import ListedModel


def models(
    folders: Annotated[
        list[Path] | None, typer.Option("--folder", help="a folder of bundles or of training runs; repeat for each")
    ] = None,
    update: Annotated[
        str | None, typer.Option("--update", metavar="hf:owner/name", help="download the newest revision of this model")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """List the models that --bundle accepts here: shipped, in folders of bundles, and cached from the hub."""
    from napari_lrmil.core.models.hub_bundle import update_hub_bundle
    from napari_lrmil.core.models.model_list import list_models

    if update is not None:
        update_hub_bundle(update, partial(print_notice, ""))
    listed = list(list_models([*(folders or ()), *_site_folders()]))
    if json:
        out.print_json(data=[_facts(model) for model in listed])
        return
    rows = [_cells(model) for model in listed if model.card is not None]
    header = ("", "model", "for", "µm per px", "classes", "size")
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        print_result("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for model in listed:
        if model.problem:
            print_notice(printable(model.name), f"not listed: {model.problem}")


def _site_folders() -> list[Path]:
    """Return the folders of models of the site's settings that exist, and print which do not: a share may be away."""
    from napari_lrmil.core.site_settings import MODELS_VARIABLE, model_folders

    folders = model_folders()
    for folder in folders:
        if not folder.is_dir():
            print_notice(printable(folder), f"not there now; it is one of `model_folders` or {MODELS_VARIABLE}")
    return [folder for folder in folders if folder.is_dir()]


def _facts(model: ListedModel) -> dict[str, Any]:
    facts = {"name": model.name, "place": model.place, "path": str(model.path), "size": model.size}
    if model.card is None:
        return {**facts, "problem": model.problem}
    card = model.card
    return {
        **facts,
        "model": card.name,
        "intended_use": card.intended_use,
        "about": card.about,
        "mpp": card.lr_mpp,
        "patch_px": card.lr_patch_px,
        "classes": list(card.classes),
        "has_teacher": card.teacher is not None,
        "licence": card.licence,
        "version": card.version,
    }


def _cells(model: ListedModel) -> tuple[str, ...]:
    card = model.card
    assert card is not None
    classes = printable(", ".join(card.classes))
    use = printable(card.intended_use) or "not stated"
    return (model.place, printable(model.name), use, f"{card.lr_mpp:g}", classes, format_size(model.size))


def push(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="folder of a bundle, or name of a shipped one")],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="repository on the Hugging Face hub")],
    public: Annotated[
        bool, typer.Option("--public", help="let everybody see the repository; private if not given")
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option(help="licence that allows to share what derives from an encoder whose licence is not known here"),
    ] = None,
    write_only: Annotated[
        Path | None,
        typer.Option("--write-only", metavar="FOLDER", help="write the repository's files here; push nothing"),
    ] = None,
) -> None:
    """Share a bundle on the Hugging Face hub, with a model card. Private unless --public is given."""
    from napari_lrmil.core.atomic_files import require_writable
    from napari_lrmil.core.models.bundle import Bundle
    from napari_lrmil.core.models.hub_card import write_repository
    from napari_lrmil.core.models.hub_push import parse_push_name, push_bundle
    from napari_lrmil.core.models.sharing_terms import sharing_terms

    repository = parse_push_name(name).repository
    model = Bundle(bundle)
    terms = sharing_terms(model, licence)
    if write_only is not None:
        require_writable(write_only)
        write_only.mkdir(parents=True, exist_ok=True)
        write_repository(write_only, model, repository, terms)
        print_result(f"{model.name}: files of hf:{repository} -> {write_only}")
        return
    pushed = push_bundle(model, repository, terms, public=public)
    visibility = "private" if pushed.is_private else "public"
    print_result(f"{model.name}: pushed to {pushed.page} ({visibility}, commit {pushed.commit[:12]})")
    print_result(f"use it by --bundle hf:{repository}")
