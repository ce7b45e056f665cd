"""Bundles by hub name, against a local stand-in of the hub: what is downloaded, what is verified, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from napari_lrmil.core.errors import BundleError
from napari_lrmil.core.models.bundle import SHIPPED, Bundle
from napari_lrmil.core.models.card import CARD, STUDENT
from napari_lrmil.core.models.hub_bundle import fetch_hub_bundle, require_cached_bundle, update_hub_bundle
from support.hub_standin import HubStandIn, Repository, serve_hub, use_hub

NAME = "hf:owner/tiny"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    with serve_hub() as server:
        use_hub(server.url, tmp_path / "cache", monkeypatch)
        yield server


@pytest.fixture
def repository(hub: HubStandIn) -> Repository:
    """Return the demo on the hub, beside files that are no part of a bundle."""
    repository = hub.publish("owner/tiny", SHIPPED / "demo")
    repository.files |= {"pytorch_model.bin": b"a pickle", "notes.txt": b"text", ".gitattributes": b"x"}
    return repository


def downloaded(hub: HubStandIn) -> set[str]:
    return {path.rpartition("/")[2] for method, path in hub.calls if method == "GET" and "/resolve/" in path}


def refusal(name: str = NAME) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle(name)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_bundle_is_downloaded_once_and_nothing_else_of_the_repository(
    hub: HubStandIn, repository: Repository
) -> None:
    notices: list[str] = []
    folder = fetch_hub_bundle(NAME, notices.append)
    assert downloaded(hub) == {CARD, STUDENT, "teacher.safetensors", "README.md"}
    assert {path.name for path in folder.iterdir()} == downloaded(hub)
    (notice,) = notices
    assert "hf:owner/tiny: 4 files, 1.6 MB, are downloaded from 127.0.0.1" in notice
    assert "licence: bsd-3-clause" in notice
    calls = len(hub.calls)
    assert Bundle(NAME).sha256 == Bundle("demo").sha256
    assert fetch_hub_bundle(NAME, notices.append) == folder
    assert (len(hub.calls), len(notices)) == (calls, 1)
    _ = Bundle(NAME).student


def test_offline_the_cached_copy_is_used(
    hub: HubStandIn, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "was not downloaded before, and this program is offline" in refusal()
    assert hub.calls == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    fetch_hub_bundle(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Bundle(NAME).name == "demo"


def test_the_window_does_not_download(hub: HubStandIn, repository: Repository) -> None:
    with pytest.raises(BundleError, match="models --update hf:owner/tiny` downloads it"):
        require_cached_bundle(NAME)
    assert hub.calls == []
    fetch_hub_bundle(NAME)
    require_cached_bundle(NAME)


def test_a_revision_is_what_was_named(hub: HubStandIn, repository: Repository) -> None:
    folder = fetch_hub_bundle(f"{NAME}@{repository.commit}")
    assert folder.name == repository.commit
    assert "has no revision v9; leave @v9 out" in refusal(f"{NAME}@v9")


def test_a_newer_revision_comes_only_when_asked_for(hub: HubStandIn, repository: Repository) -> None:
    old = fetch_hub_bundle(NAME)
    repository.commit = "c" * 40
    assert fetch_hub_bundle(NAME) == old
    assert update_hub_bundle(NAME).name == "c" * 40
    assert fetch_hub_bundle(NAME).name == "c" * 40


@pytest.mark.parametrize("file", [CARD, STUDENT, "README.md"])
@pytest.mark.parametrize("states_hashes", [True, False])
def test_altered_bytes_are_refused_and_not_kept(
    hub: HubStandIn, repository: Repository, file: str, states_hashes: bool
) -> None:
    repository.altered, repository.states_hashes = {file}, states_hashes
    assert f"{file} does not have the hash that the hub states" in refusal()
    repository.altered = set()
    assert Bundle(NAME).sha256 == Bundle("demo").sha256


def test_weights_of_another_card_are_refused(hub: HubStandIn, repository: Repository) -> None:
    repository.files[STUDENT] = (SHIPPED / "breast-idc" / STUDENT).read_bytes()
    assert f"{STUDENT} is not the file that {CARD} describes" in refusal()


@pytest.mark.parametrize("file", [CARD, STUDENT])
def test_a_cut_transfer_is_refused_and_the_next_call_downloads_again(
    hub: HubStandIn, repository: Repository, file: str
) -> None:
    repository.cut = {file}
    assert "was cut off" in refusal()
    repository.cut = set()
    assert Bundle(NAME).sha256 == Bundle("demo").sha256


def test_what_the_hub_refuses_is_said_in_a_sentence(hub: HubStandIn, repository: Repository) -> None:
    assert f"{hub.url}/owner/nothing does not exist, or is private" in refusal("hf:owner/nothing")
    repository.gated = True
    assert f"agree to its terms at {hub.url}/owner/tiny" in refusal()
    assert "expected hf:owner/name" in refusal("hf:tiny")
    assert "expected hf:owner/name" in refusal("hf:owner/..tiny--x")


def test_another_repository_is_no_bundle(hub: HubStandIn) -> None:
    hub.repositories["owner/other"] = Repository({"pytorch_model.bin": b"pickle", "config.json": b"{}"})
    text = refusal("hf:owner/other")
    assert "is no bundle of napari-lrmil: lrmil.json and student.safetensors missing" in text
    assert "config.json, pytorch_model.bin" in text
    assert downloaded(hub) == set()


def test_a_hub_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_hub() as server:
        url = server.url
    use_hub(url, tmp_path, monkeypatch)
    assert "cannot be reached" in refusal()


def test_a_disk_without_room_is_noticed_before_the_download(
    hub: HubStandIn, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(Path.cwd())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert "the model has 1.6 MB, but 0.0 MB are free" in refusal()
    assert downloaded(hub) == set()
