"""Table of a ladder on the screen."""

from __future__ import annotations

from typing import Any

import pytest

from napari_lrmil.core.ladder.schema import LadderFile, RungEntry
from napari_lrmil.core.ladder.table import align, ladder_lines


def rung(mpp: float, magnification: str, **values: Any) -> RungEntry:
    figures = {"probabilities": {"normal": 0.25, "lesion": 0.75}, "predicted": "lesion", "state": "read"}
    costs = {"n_patches": 12, "pixels_decoded": 2_000_000, "seconds": 1.0, "cpu_seconds": 1.5}
    return RungEntry(magnification=magnification, mpp=mpp, network="student", **figures | costs | values)


@pytest.mark.parametrize(
    ("reasons", "expected"),
    [
        (("", ""), []),
        (("not calibrated, it has no limits",) * 2, ["no set at 10x, 5x: not calibrated, it has no limits"]),
        (("", "4 patients are too few"), ["no set at 5x: 4 patients are too few"]),
    ],
)
def test_a_missing_set_has_a_reason(reasons: tuple[str, str], expected: list[str]) -> None:
    """A cell ``none`` would read as a set without a class."""
    fine, coarse = (
        rung(mpp, name, no_set_reason=reason, prediction_set=None if reason else ("lesion",))
        for mpp, name, reason in zip((1.0, 2.0), ("10x", "5x"), reasons, strict=True)
    )
    file = LadderFile(
        slide="a", slide_fingerprint="f", request_sha256="r", classes=("normal", "lesion"), coverage=0.9,
        rungs=(coarse, fine), version="0", reference="10x", text="lesion at every resolution",
    )  # fmt: skip
    head, *lines = align(ladder_lines(file)).splitlines()
    assert "set at 90 %" in head and "none" not in " ".join(lines)
    assert [line.strip() for line in lines[2:]] == expected
    for line, reason in zip(lines, reasons, strict=False):
        assert ("no set" in line) == bool(reason)
