"""The command that lists encoders."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from napari_lrmil.cli.console import out


def encoders(
    name: Annotated[str | None, typer.Argument(help="one of the registry, to see all that is told of it")] = None,
) -> None:
    """List what can be an encoder: our families, and the registry of foundation encoders with licence and terms."""
    from napari_lrmil.core.encoders import ACCEPTED_ENCODERS, TRAINABLE, foundation_card, foundation_cards
    from napari_lrmil.core.errors import EncoderError

    if name is not None:
        card = foundation_card(name.removeprefix("lazyslide:"))
        use = {True: "yes", False: "no", None: "not told"}[card.commercial]
        told = {"licence": card.licence, "gated": "yes" if card.gated else "no", "commercial use": use}
        told |= {"embedding": str(card.width or "not told"), "parameters": card.parameters}
        told |= {"source": card.url, "about": card.about}
        for key, value in told.items():
            out.print(f"{key:15} {value}", highlight=False, soft_wrap=True)
        return
    out.print(f"teacher and student: {', '.join(TRAINABLE)}", highlight=False)
    out.print(f"named by {ACCEPTED_ENCODERS}", highlight=False, soft_wrap=True)
    try:
        cards = foundation_cards()
    except EncoderError as error:
        out.print(f"teachers of the registry: not here; {escape(str(error))}", highlight=False, soft_wrap=True)
        return
    table = Table(Column("lazyslide:…", no_wrap=True), "licence", "gated", "commercial", "width", "size", box=None)
    for card in cards:
        commercial = {True: "yes", False: "no", None: "?"}[card.commercial]
        row = (card.name, card.licence, "yes" if card.gated else "", commercial)
        table.add_row(*row, str(card.width or "?"), card.parameters)
    out.print(table)
