"""Text for figures: signs, undefined figures, and the one line on the agreement of attention."""

from __future__ import annotations

import pytest

from napari_lrmil.core.compare import Agreement
from napari_lrmil.core.formatting import format_agreement, format_signed


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234, "+0.123"), (-0.03, "−0.030"), (0.0, "+0.000"), (-1.0, "−1.000"), (None, "–")]
)
def test_differences_have_a_sign_and_an_undefined_one_is_a_dash(value: float | None, text: str) -> None:
    assert format_signed(value) == text


@pytest.mark.parametrize(
    ("rho", "n_lr_patches", "text"),
    [
        (0.876, 12, "rank correlation ρ 0.88 · top-10 % overlap 0.50 · JS divergence 0.07"),
        (-0.2, 12, "rank correlation ρ -0.20 · top-10 % overlap 0.50 · JS divergence 0.07"),
        (None, 12, "rank correlation ρ not defined · top-10 % overlap 0.50 · JS divergence 0.07"),
        (1.0, 40, "rank correlation ρ 1.00 · top-10 % overlap 0.50 · JS divergence 0.07 · over 12 of 40 patches"),
    ],
)
def test_agreement_is_one_line_that_says_how_many_patches_were_compared(
    rho: float | None, n_lr_patches: int, text: str
) -> None:
    assert format_agreement(Agreement(rho, 0.5, 0.071, n_patches=12), n_lr_patches) == text


def test_without_a_teacher_the_line_says_so() -> None:
    assert format_agreement(None, 12) == "no teacher beside it"
