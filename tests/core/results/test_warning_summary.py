"""Warnings of a cohort at the end of a call: each once, with its slides."""

from __future__ import annotations

from napari_lrmil.core.results.schema import PredictionFile
from napari_lrmil.core.results.warning_summary import MAX_LINES, summarize_warnings

STAIN = "staining is far outside the training range ({} times the usual spread); check stain and scanner"


def result(slide: str, *warnings: str) -> PredictionFile:
    return PredictionFile(
        slide=slide, slide_fingerprint="f", bundle="b", bundle_sha256="h", classes=("normal", "lesion"),
        probabilities={"normal": 0.5, "lesion": 0.5}, calibrated=False, logits={"normal": 0.0, "lesion": 0.0},
        predicted="normal", lr_mpp=2.0, patch_um=128.0, n_patches=4, n_hr_patches=64, pixels_decoded=1,
        device="cpu", seconds={"total": 1.0}, warnings=warnings, version="0",
    )  # fmt: skip


def test_warnings_that_differ_in_numbers_are_one_line() -> None:
    files = [result(f"s{i}", "about the model b: a toy", STAIN.format(f"{3.5 + i:.1f}")) for i in range(6)]
    files += [result("test-13-007", "1,200 of 3,000 tiles are missing"), result("s8")]
    files[0] = result("s0", *files[0].warnings, "900 of 3,000 tiles are missing")
    assert list(summarize_warnings(files)) == [
        f"6 of 8 slides (s0, s1, s2, s3, s4 and 1 more): {STAIN.format('3.5 to 8.5')}",
        "2 of 8 slides (s0, test-13-007): 900 to 1,200 of 3,000 tiles are missing",
    ]


def test_what_all_slides_share_names_none_of_them() -> None:
    assert list(summarize_warnings([result("a", "x"), result("b", "x", "in test-13 and b-2")])) == [
        "2 of 2 slides: x",
        "1 of 2 slides (b): in test-13 and b-2",
    ]
    assert list(summarize_warnings([result("a", "about the model b: a toy"), result("b")])) == []


def test_names_with_numbers_are_not_joined() -> None:
    files = [result("a", "test-13-001.tif has a twin"), result("b", "test-13-002.tif has a twin")]
    assert [line.partition(": ")[2] for line in summarize_warnings(files)] == [f.warnings[0] for f in files]


def test_many_different_warnings_do_not_bury_the_result() -> None:
    files = [result(f"s{i}", f"the pen of {'abcdefghijklmnopqrst'[i]}") for i in range(20)]
    *lines, last = summarize_warnings(files)
    assert len(lines) == MAX_LINES and last == "8 further warnings, of 8 slides, are not listed here"
