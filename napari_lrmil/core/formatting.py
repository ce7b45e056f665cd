"""Text for figures that the window, the command line and reports share, so that one figure reads alike everywhere."""

from __future__ import annotations

from typing import Protocol

UNDEFINED = "–"


class AgreementFigures(Protocol):
    """Agreement of two attention maps, as `napari_lrmil.core.compare.Agreement` has it.

    Structural, because that class needs the slide and its grids, and this module is below both.
    """

    @property
    def spearman(self) -> float | None: ...  # noqa: D102
    @property
    def jaccard_top10(self) -> float: ...  # noqa: D102
    @property
    def js_divergence(self) -> float: ...  # noqa: D102
    @property
    def n_patches(self) -> int: ...  # noqa: D102


def format_signed(value: float | None) -> str:
    """Return a difference with its sign and three decimals (a true minus, no hyphen); a dash for None."""
    return UNDEFINED if value is None else f"{value:+.3f}".replace("-", "−")


def format_agreement(agreement: AgreementFigures | None, n_lr_patches: int) -> str:
    """Return the agreement of student and teacher attention in one line.

    Parameters
    ----------
    agreement
        None if no teacher ran.
    n_lr_patches
        LR patches of the prediction. If the teacher read only some of them, the line says how many.
    """
    if agreement is None:
        return "no teacher beside it"
    rho = "not defined" if agreement.spearman is None else f"{agreement.spearman:.2f}"
    figures = (
        f"rank correlation ρ {rho} · top-10 % overlap {agreement.jaccard_top10:.2f} · "
        f"JS divergence {agreement.js_divergence:.2f}"
    )
    compared = agreement.n_patches
    return figures if compared == n_lr_patches else f"{figures} · over {compared} of {n_lr_patches} patches"
