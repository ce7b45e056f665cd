"""All checks of an installation, in order, each of which may fail without ending the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from napari_lrmil.core.doctor import environment, self_test, site
from napari_lrmil.core.doctor.check import FAILED, NOTE, OK, Check

__all__ = ["FAILED", "NOTE", "OK", "Check", "run_checks"]

Result = Check | tuple[Check, ...]
ENVIRONMENT: tuple[tuple[str, Callable[[], Result]], ...] = (
    ("versions", environment.check_versions),
    ("OpenSlide", environment.check_openslide),
    ("device", environment.check_device),
    ("memory", environment.check_memory),
    ("extras", environment.check_extras),
    ("site settings", site.check_site),
    ("folders", environment.check_folders),
    ("model hub", environment.check_hub),
)


def run_checks() -> Iterator[Check]:
    """Yield the results of all checks, each as soon as it is known."""
    for name, check in ENVIRONMENT:
        yield from _results(name, check)
    try:
        folder = TemporaryDirectory(prefix="napari-lrmil-doctor-")
    except OSError as error:
        yield Check(
            "self-test", f"no temporary folder ({error})", FAILED, "set TMPDIR to a folder that you may write to"
        )
        return
    with folder as path:
        for kind in self_test.KINDS:
            yield from _results(f"self-test, {kind.name}", partial(_test_kind, Path(path), kind))
        yield from _results("attention", partial(_test_attention, Path(path)))


def _test_kind(folder: Path, kind: self_test.Kind) -> tuple[Check, ...]:
    planted = self_test.plant(folder, kind)
    return self_test.check_squares(planted), self_test.check_readers(planted)


def _test_attention(folder: Path) -> Check:
    return self_test.check_attention(self_test.plant(folder, self_test.KINDS[0]))


def _results(name: str, check: Callable[[], Result]) -> tuple[Check, ...]:
    """Return the results of a check; one that raises has failed, because finding such errors is its purpose."""
    try:
        results = check()
    except Exception as error:
        return (Check(name, f"{type(error).__name__}: {error}", FAILED, self_test.REMEDY),)
    return results if isinstance(results, tuple) else (results,)
