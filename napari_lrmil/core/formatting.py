"""Text for figures that the window, the command line and reports share, so that one figure reads alike everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

UNDEFINED = "–"
ABOUT_MODEL = "about the model "  # start of a notice that says what a model is; it is no caution about an answer
MB, GB = 1e6, 1e9


class AgreementFigures(Protocol):
    """Agreement of two attention maps, as `napari_lrmil.core.metrics.agreement.Agreement` has it.

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


def shorten(text: str, limit: int = 60) -> str:
    """Return text from a file or a library, for a message: on one line and at most `limit` characters long."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[:limit]}…"


def format_count(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, as in ``1 slide`` and ``2 slides``.

    Parameters
    ----------
    number
        The number.
    noun
        The noun in the singular.
    plural
        Its plural, such as ``patches``; empty adds an s.
    """
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def format_duration(seconds: float) -> str:
    """Return a duration: ``40 s`` below 90 s, ``7 min`` below two hours, then ``2 h 10 min`` and ``2 d 7 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def format_size(n_bytes: float) -> str:
    """Return an amount of data in MB (10^6 bytes), one decimal below 100 MB, or in GB from 2 GB on."""
    if n_bytes >= 2 * GB:
        return f"{n_bytes / GB:.1f} GB"
    return f"{n_bytes / MB:.{1 if n_bytes < 100 * MB else 0}f} MB"


def format_probability(value: float) -> str:
    """Return a probability, or a difference of two, with three decimals; none reads as certain by rounding."""
    if value < 0.0005:
        return "< 0.001"
    return "> 0.999" if value >= 0.9995 else f"{value:.3f}"


def format_probabilities(probabilities: Mapping[str, float]) -> str:
    """Return class -> probability in one line."""
    return ", ".join(f"{name} {format_probability(value)}" for name, value in probabilities.items())


def describe_conflict(positive: str, reached: bool, predicted: str) -> str:
    """Return a sentence if the operating point counts a slide as another class than the most probable one; else empty.

    Parameters
    ----------
    positive
        Class of the operating point.
    reached
        Whether the slide is at or above it.
    predicted
        The most probable class.
    """
    if reached == (predicted == positive):
        return ""
    counted = positive if reached else f"not {positive}"
    return f"the two rules differ: the highest probability says {predicted}, the operating point says {counted}"


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
