"""Commands ``cache`` and ``doctor --licences``."""

from __future__ import annotations

import csv
import re
import shutil
import tomllib
from collections.abc import Callable
from email.message import Message
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from napari_lrmil.core.doctor import licences
from napari_lrmil.core.doctor.licences import dependency_licences, stated_licence
from napari_lrmil.core.extras import EXTRAS
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


@pytest.mark.parametrize("is_new", [False, True])
@pytest.mark.parametrize(("extra", "names"), [("dicom", ("highdicom", "pydicom")), ("lazyslide", ("pyarrow",))])
def test_an_extra_is_in_the_table_even_if_it_is_newer_than_the_installed_metadata(
    extra: str, names: tuple[str, ...], is_new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source tree that was installed before the extra came has metadata without it."""
    if any(find_spec(name) is None for name in names):
        pytest.skip(f"the extra {extra} is not installed")
    metadata = Message()
    metadata["Name"] = "napari-lrmil"
    for known in EXTRAS.keys() - ({extra} if is_new else set()):
        metadata["Provides-Extra"] = known
    requires = ["numpy"] if is_new else ["numpy", *(f"{name}; extra == '{extra}'" for name in names)]
    old = SimpleNamespace(requires=requires, metadata=metadata, version="0.1.0")
    monkeypatch.setattr(licences, "distribution", lambda name: old if name == "napari-lrmil" else distribution(name))
    needed_by = {row.name.lower(): row.needed_by for row in dependency_licences()}
    assert needed_by["numpy"] == "core"
    assert {needed_by[name] for name in names} == {f"extra {extra}"}


def test_every_extra_has_its_licences_listed_and_its_row_in_the_docs() -> None:
    """An extra that `EXTRAS` lacks would be missing from `doctor`, and from its table of licences."""
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = set(project["optional-dependencies"])
    assert declared == {*EXTRAS, *licences.UNSHIPPED_EXTRAS}
    (all_of_them,) = project["optional-dependencies"]["all"]
    assert set(all_of_them.partition("[")[2].rstrip("]").split(",")) == set(EXTRAS)
    page = (root / "docs" / "install.md").read_text(encoding="utf-8").split("## Extras")[1].split("\n## ")[0]
    rows = [row.split("|")[1] for row in page.splitlines() if row.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == declared


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
