"""Full disk: a one-sentence error, no partial files, and the same command resumes once there is space."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from napari_lrmil.core.atomic_files import atomic_write
from napari_lrmil.core.encoders import save_encoder
from napari_lrmil.core.errors import DiskFullError, LrmilError
from support.networks import untrained_encoder
from support.phantoms import copy_cohort
from support.processes import ended, start_command

SETTINGS = (
    "hr_patch_px=64",
    "lr_patch_px=64",
    "bootstrap=100",
    "teacher.epochs=2",
    "stage1.epochs=1",
    "stage2.epochs=2",
    "stage3.epochs=0",
)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a disk of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("a small disk can be mounted by root on Linux only")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_what_does_not_fit_is_told_and_leaves_nothing(small_disk: Path) -> None:
    """The disk error of any library is translated; an `LrmilError` passes unchanged."""
    message = r"no space is left on the disk \(\d\.\d MB free\); free some space"
    with pytest.raises(DiskFullError, match=message), atomic_write(small_disk / "large") as partial:
        partial.write_bytes(bytes(2**21))
    with pytest.raises(DiskFullError, match=message), atomic_write(small_disk / "large", 2**21):
        pytest.fail("the size was checked in advance")
    assert not list(small_disk.iterdir())
    (small_disk / "ballast").write_bytes(bytes(2**20))
    with pytest.raises(LrmilError, match="ours"), atomic_write(small_disk / "x"):
        raise LrmilError("ours")


@pytest.mark.slow
def test_training_goes_on_when_there_is_room(phantoms: Path, small_disk: Path, tmp_path: Path) -> None:
    """The command line fails with one sentence; after the disk is enlarged the same command completes."""
    table = copy_cohort(phantoms, tmp_path / "cohort", train=4, val=2, test=2)
    save_encoder(tmp_path / "e.safetensors", untrained_encoder())
    settings = [*SETTINGS, f"encoder.teacher={tmp_path / 'e.safetensors'}"]
    command = ["train", table]
    command += [
        "--out",
        small_disk / "run",
        "--device",
        "cpu",
        *(argument for s in settings for argument in ("--set", s)),
    ]
    full = start_command(*command, "--ignore-disk", said=tmp_path / "said")
    assert ended(full) == 1
    said = (tmp_path / "said").read_text()
    assert "no space is left on the disk" in said
    assert "Traceback" not in said
    assert not list(small_disk.rglob("*.partial"))
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    assert ended(start_command(*command)) == 0
    assert (small_disk / "run" / "bundle" / "lrmil.json").exists()
