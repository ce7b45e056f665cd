"""Commands ``cache`` and ``doctor --licences``."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from napari_lrmil.core.doctor.licences import dependency_licences, stated_licence
from napari_lrmil.core.models.bundle import SHIPPED

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with both caches: two entries of this program, a model and an encoder of the hub."""
    from huggingface_hub import constants

    monkeypatch.setenv("NAPARI_LRMIL_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "own" / "runtimes" / "a").mkdir(parents=True)
    (tmp_path / "own" / "runtimes" / "a" / "net.bin").write_bytes(bytes(2_500_000))
    (tmp_path / "own" / "opened-slides.txt").write_text("slide\n")
    shutil.copytree(SHIPPED / "demo", tmp_path / "hub" / "models--owner--tiny" / "snapshots" / "abc")
    (tmp_path / "hub" / "models--other--encoder" / "blobs").mkdir(parents=True)
    return tmp_path


def test_what_is_kept_is_listed_with_sizes(call: Call, caches: Path) -> None:
    code, out, _ = call("cache")
    assert code == 0
    lines = {line.split()[0]: " ".join(line.split()) for line in out.splitlines()}
    assert lines["runtimes"] == f"runtimes 2.5 MB converted models and runtime checks, {caches}/own/runtimes"
    assert lines["hf:owner/tiny"].startswith("hf:owner/tiny 1.6 MB model, ")
    assert "encoder, or of another program" in lines["hf:other/encoder"]
    assert out.splitlines()[-1] == "4 entries, 4.1 MB"


def test_all_clears_what_is_of_this_program_alone(call: Call, caches: Path) -> None:
    code, out, _ = call("cache", "--clear", "all")
    assert code == 0
    assert "removed: opened-slides.txt, runtimes (2.5 MB)" in out
    assert list((caches / "own").iterdir()) == []
    assert (caches / "hub" / "models--owner--tiny").is_dir()


def test_a_model_of_the_hub_is_cleared_by_its_name(call: Call, caches: Path) -> None:
    assert call("cache", "--clear", "hf:owner/tiny")[0] == 0
    assert [path.name for path in (caches / "hub").iterdir()] == ["models--other--encoder"]
    assert (caches / "own" / "runtimes").is_dir()


def test_an_unknown_name_clears_nothing(call: Call, caches: Path) -> None:
    code, _, err = call("cache", "--clear", "runtimes", "--clear", "../other")
    assert code == 2
    assert "nothing of the name '../other' is kept; there is: opened-slides.txt, runtimes, hf:" in err
    assert (caches / "own" / "runtimes").is_dir()


def test_empty_caches(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("NAPARI_LRMIL_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert call("cache")[1] == "0 entries, 0.0 MB\n"
    assert "removed: nothing" in call("cache", "--clear", "all")[1]


def test_licences_of_all_dependencies(call: Call) -> None:
    code, out, _ = call("doctor", "--licences")
    assert code == 0
    rows = {row["name"].lower(): row for row in csv.DictReader(out.splitlines())}
    assert rows["numpy"]["needed by"] == "core"
    assert "BSD" in rows["numpy"]["licence"]
    assert rows["openslide-python"]["copyleft"] == "yes"
    assert rows["safetensors"]["copyleft"] == ""
    assert "napari-lrmil" not in rows
    assert "pytest" not in rows  # of the extra dev
    assert "mdurl" in rows  # needed by what this program needs


def test_no_dependency_of_the_core_is_without_a_licence() -> None:
    """A licence that nobody states could forbid anything."""
    assert [row.name for row in dependency_licences() if row.licence == "not stated"] == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"License-Expression": "MIT", "License": "x"}, "MIT"),
        ({"Classifier": "License :: OSI Approved :: BSD License"}, "BSD License"),
        ({"License": "Apache\n 2.0"}, "Apache 2.0"),
        ({"License": "x" * 300}, "x" * 60 + "…"),
        ({"License": "UNKNOWN"}, "not stated"),
        ({}, "not stated"),
    ],
)
def test_the_most_exact_statement_counts(fields: dict[str, str], expected: str) -> None:
    metadata = Message()
    for name, value in fields.items():
        metadata[name] = value
    installed: Any = SimpleNamespace(metadata=metadata)
    assert stated_licence(installed) == expected
