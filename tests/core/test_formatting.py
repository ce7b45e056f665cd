"""Text for figures: signs, undefined figures, and the one line on the agreement of attention."""

from __future__ import annotations

import pytest

from napari_lrmil.core.formatting import (
    format_agreement,
    format_count,
    format_duration,
    format_probabilities,
    format_probability,
    format_signed,
    format_size,
)
from napari_lrmil.core.metrics.agreement import Agreement


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234, "+0.123"), (-0.03, "−0.030"), (0.0, "+0.000"), (-1.0, "−1.000"), (None, "–")]
)
def test_differences_have_a_sign_and_an_undefined_one_is_a_dash(value: float | None, text: str) -> None:
    assert format_signed(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "1 s"),
        (1.4, "1 s"),
        (41.0, "41 s"),
        (89.9, "90 s"),
        (90.0, "2 min"),
        (400.0, "7 min"),
        (7100.0, "118 min"),
        (7199.0, "2 h 0 min"),
        (7800.0, "2 h 10 min"),
        (172_000.0, "47 h 47 min"),
        (172_800.0, "2 d 0 h"),
        (200_000.0, "2 d 7 h"),
    ],
)
def test_a_duration_is_told_in_the_two_largest_of_its_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0.0 MB"), (13_370_000, "13.4 MB"), (123_456_789, "123 MB"), (1_999e6, "1999 MB"), (2_345_000_000, "2.3 GB")],
)
def test_sizes_are_decimal_megabytes_and_gigabytes(n_bytes: float, text: str) -> None:
    assert format_size(n_bytes) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "> 0.999"), (0.9995, "> 0.999"), (0.9994, "0.999"), (0.5, "0.500"), (0.0004, "< 0.001")]
)
def test_no_probability_reads_as_certain_by_rounding(value: float, text: str) -> None:
    assert format_probability(value) == text
    assert format_probabilities({"lesion": value, "normal": 0.25}) == f"lesion {text}, normal 0.250"


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


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("slide",), "0 slides"),
        (1, ("slide",), "1 slide"),
        (1, ("patch", "patches"), "1 patch"),
        (12, ("patch", "patches"), "12 patches"),
        (1, ("slide has", "slides have"), "1 slide has"),
    ],
)
def test_a_count_has_its_noun_in_the_right_number(number: int, words: tuple[str, ...], text: str) -> None:
    assert format_count(number, *words) == text
