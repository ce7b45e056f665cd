"""Command ``encoders``: list encoders with their licences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from napari_lrmil.cli.console import out, print_result

if TYPE_CHECKING:
    from napari_lrmil.core.encoders.foundation import EncoderCard


def encoders(
    name: Annotated[str | None, typer.Argument(help="an encoder of the registry; print its details")] = None,
) -> None:
    """List encoders: families that can be trained, and foundation encoders with licence and terms."""
    from napari_lrmil.core.encoders import ACCEPTED_ENCODERS, TRAINABLE, foundation_card, foundation_cards
    from napari_lrmil.core.errors import EncoderError

    if name is not None:
        _print_card(foundation_card(name.removeprefix("lazyslide:")))
        return
    print_result(f"teacher and student: {', '.join(TRAINABLE)}")
    print_result(f"named by {ACCEPTED_ENCODERS}")
    try:
        cards = foundation_cards()
    # Without the extra `encoders` there is no registry, but our own families can be listed.
    except EncoderError as error:
        print_result(f"teachers of the registry: not available; {error}")
        return
    table = Table(Column("lazyslide:…", no_wrap=True), "licence", "gated", "commercial", "width", "size", box=None)
    for card in cards:
        commercial = {True: "yes", False: "no", None: "?"}[card.commercial]
        row = (card.name, card.licence, "yes" if card.gated else "", commercial)
        table.add_row(*row, str(card.width or "?"), card.parameters)
    out.print(table)


def _print_card(card: EncoderCard) -> None:
    """Print the details of a foundation encoder. The registry may lack the width and the terms of use."""
    commercial = {True: "yes", False: "no", None: "not stated"}[card.commercial]
    facts = {"licence": card.licence, "gated": "yes" if card.gated else "no", "commercial use": commercial}
    facts |= {"embedding": str(card.width or "not stated"), "parameters": card.parameters}
    facts |= {"source": card.url, "about": card.about}
    for key, value in facts.items():
        print_result(f"{key:15} {value}")
