"""The examination of an installation passes where all is well, and finds each fault that is planted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_lrmil.core import extras
from napari_lrmil.core.doctor import FAILED, NOTE, OK, checks, environment, self_test
from napari_lrmil.core.doctor.check import Check
from napari_lrmil.core.doctor.self_test import KINDS, Kind, check_attention, check_readers, check_squares, plant
from napari_lrmil.core.geometry import BoxLevel0, Lattice
from napari_lrmil.core.inference import predict
from napari_lrmil.core.slides.slide import Slide
from napari_lrmil.core.slides.tile_reader import TileRead, TileReader

Call = Callable[..., tuple[int, str, str]]
KIND = KINDS[0]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> self_test.Planted:
    return plant(tmp_path_factory.mktemp("planted"), KIND)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_sound_installation_passes_on_every_kind_of_slide(tmp_path: Path, kind: Kind) -> None:
    slide = plant(tmp_path, kind)
    assert (check_squares(slide).status, check_readers(slide).status) == (OK, OK)


def test_the_attention_of_the_shipped_model_passes(planted: self_test.Planted) -> None:
    assert check_attention(planted).status == OK


@pytest.mark.parametrize("shift", [1, 8, 300])
def test_a_shifted_lattice_is_found(planted: self_test.Planted, monkeypatch: pytest.MonkeyPatch, shift: int) -> None:
    corners = Lattice.lr_corners
    monkeypatch.setattr(Lattice, "lr_corners", lambda lattice, index: corners(lattice, index) + shift)
    check = check_squares(planted)
    assert check.status == FAILED and "do not rely on results" in check.remedy


def test_a_map_that_is_off_by_one_patch_is_found(planted: self_test.Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Slide.read_patches
    monkeypatch.setattr(Slide, "read_patches", lambda *arguments: np.roll(read(*arguments), 1, axis=0))
    check = check_squares(planted)
    assert check.status == FAILED and "expected at most 0.50" in check.text


def test_a_reader_that_is_off_by_one_pixel_is_found(
    planted: self_test.Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Slide.read
    monkeypatch.setattr(Slide, "read", lambda slide, box, size: read(slide, replace(box, x=box.x + 1), size))
    check = check_readers(planted)
    assert check.status == FAILED and "from OpenSlide; expected at most 2" in check.text


def test_tiles_that_are_off_by_one_pixel_are_found(planted: self_test.Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    read = TileReader.read

    def shifted(reader: TileReader, box: BoxLevel0, *rest: Any, **named: Any) -> TileRead | None:
        tiles = read(reader, box, *rest, **named)
        return None if tiles is None else replace(tiles, pixels=np.roll(tiles.pixels, 1, axis=1))

    monkeypatch.setattr(TileReader, "read", shifted)
    assert check_readers(planted).status == FAILED


def test_attention_that_does_not_sum_to_one_is_found(
    planted: self_test.Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = predict.pool_instances

    def scaled(*arguments: Any, **named: Any) -> Any:
        bag = pool(*arguments, **named)
        return replace(bag, attention=bag.attention * np.float32(0.99))

    monkeypatch.setattr(predict, "pool_instances", scaled)
    assert check_attention(planted).status == FAILED


def test_a_cache_that_cannot_be_written_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("NAPARI_LRMIL_CACHE", str(tmp_path / "file" / "cache"))
    cache = environment.check_folders()[0]
    assert cache.status == FAILED and "NAPARI_LRMIL_CACHE" in cache.remedy


def test_a_folder_that_is_missing_is_not_made(tmp_path: Path) -> None:
    assert environment.check_folder("cache", tmp_path / "a" / "b", "").status == OK
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "REQUIRED", ("numpy", "no-such-library"))
    check = environment.check_versions()
    assert check.status == FAILED and check.remedy == "pip install no-such-library"


def test_a_missing_extra_is_a_note_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "train", ("no_such_module",))
    check = environment.check_extras()[list(extras.EXTRAS).index("train")]
    assert check.status == NOTE and 'pip install "napari-lrmil[train]"' in check.remedy


def test_a_check_that_raises_has_failed_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Check:
        raise OSError("libopenslide.so.1: cannot open shared object file")

    monkeypatch.setattr(checks, "ENVIRONMENT", (("OpenSlide", broken), ("memory", environment.check_memory)))
    monkeypatch.setattr(self_test, "KINDS", ())
    monkeypatch.setattr(checks, "_test_attention", lambda folder: Check("attention", ""))
    first, *others = checks.run_checks()
    assert first.status == FAILED and "cannot open shared object" in first.text
    assert [check.status for check in others] == [OK, OK]


@pytest.mark.parametrize(("status", "code"), [(OK, 0), (NOTE, 0), (FAILED, 1)])
def test_the_exit_code_says_whether_a_check_failed(
    call: Call, monkeypatch: pytest.MonkeyPatch, status: str, code: int
) -> None:
    from napari_lrmil.core import doctor

    monkeypatch.setattr(doctor, "run_checks", lambda: iter([Check("cache", "[/b] seen", status, "do this")]))
    returned, out, _ = call("doctor")
    assert returned == code and "cache: [/b] seen; do this" in out
