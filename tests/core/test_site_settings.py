"""Settings of a site: below variables and explicit options, refused in a sentence if broken, shown with source."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from napari_lrmil.core import site_settings
from napari_lrmil.core.cohort.backends import BackendChoice, choose_backend
from napari_lrmil.core.cohort.local_pool import LocalProcesses
from napari_lrmil.core.doctor.check import FAILED
from napari_lrmil.core.doctor.site import check_site
from napari_lrmil.core.errors import ConfigError
from napari_lrmil.core.features.devices import resolve_device
from napari_lrmil.core.models.bundle import SHIPPED, Bundle
from napari_lrmil.core.models.model_choice import listed_model_uses, shipped_model_uses
from napari_lrmil.core.site_settings import ENTRIES, FILE_VARIABLE, apply_site_settings, site_values
from napari_lrmil.core.threads import leave_core_free
from napari_lrmil.core.user_folders import cache_folder

Call = Callable[..., tuple[int, str, str]]
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Return a function that writes the site's file; no setting is in the environment, and none is left there."""
    before = dict(os.environ)
    for entry in ENTRIES:
        for name in (*entry.variables, *entry.others):
            os.environ.pop(name, None)
            os.environ.pop(name.lower(), None)
    file = tmp_path / "site.yaml"
    os.environ[FILE_VARIABLE] = str(file)
    monkeypatch.setattr(site_settings, "_BY_FILE", {})

    def to_file(text: str) -> Path:
        file.write_text(text, encoding="utf-8")
        return file

    yield to_file
    os.environ.clear()
    os.environ.update(before)


def sources() -> dict[str, tuple[str, str]]:
    return {value.key: (value.value, value.source) for value in site_values()}


def test_the_file_sets_what_nobody_else_did(write: Write, tmp_path: Path) -> None:
    certificate = tmp_path / "ca.pem"
    certificate.write_text("certificate")
    file = write(
        f"cache: {tmp_path}/cache\nhub_cache: {tmp_path}/hub\nhub_endpoint: https://mirror.example\n"
        f"proxy: http://me:secret@proxy.example:3128\nno_proxy: localhost,.example\nca_bundle: {certificate}\n"
        "offline: true\ndevice: cpu\nthreads: 3\nmodel_folders: [/share/a, /share/b]\n"
    )
    apply_site_settings()
    assert cache_folder() == tmp_path / "cache"
    assert os.environ["HF_ENDPOINT"] == "https://mirror.example"
    assert os.environ["HTTPS_PROXY"] == os.environ["HTTP_PROXY"] == "http://me:secret@proxy.example:3128"
    assert os.environ["SSL_CERT_FILE"] == str(certificate)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    shown = sources()
    assert shown["proxy"] == ("http://***@proxy.example:3128", str(file))
    assert shown["model_folders"] == (os.pathsep.join(("/share/a", "/share/b")), str(file))
    assert {source for _, source in shown.values()} == {str(file)}


def test_a_variable_stays_as_it_is(write: Write, tmp_path: Path) -> None:
    write(f"cache: {tmp_path}\nproxy: http://site:1\nhub_cache: {tmp_path}\ndevice: cuda\noffline: true\n")
    os.environ |= {
        "NAPARI_LRMIL_CACHE": "/mine",
        "https_proxy": "http://mine:1",
        "HF_HOME": "/home",
        "HF_HUB_OFFLINE": "0",
    }
    os.environ["NAPARI_LRMIL_DEVICE"] = "cpu"
    apply_site_settings()
    assert cache_folder() == Path("/mine")
    assert "HTTPS_PROXY" not in os.environ and "HF_HUB_CACHE" not in os.environ
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    assert resolve_device("auto") == "cpu"
    assert sources()["proxy"] == ("http://mine:1", "https_proxy")
    assert sources()["cache"] == ("/mine", "NAPARI_LRMIL_CACHE")


def test_without_a_file_everything_is_the_default(write: Write, tmp_path: Path) -> None:
    write("")
    apply_site_settings()
    assert {source for _, source in sources().values()} == {"default"}
    del os.environ[FILE_VARIABLE]
    os.environ["XDG_CONFIG_DIRS"] = str(tmp_path / "nowhere")
    apply_site_settings()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("colour: red", "unknown key colour; keys are cache,"),
        ("threads: many", "threads is 'many'; expected a whole number from 1"),
        ("threads: true", "threads is True; expected a whole number"),
        ("threads: 0", "expected a whole number from 1"),
        ("device: gpu", "device is 'gpu'; expected one of auto, cpu, cuda, mps"),
        ("offline: 'yes'", "offline is 'yes'; expected true or false"),
        ("cache: relative/path", "expected an absolute path of a folder"),
        ("ca_bundle: /nowhere/ca.pem", "which is no file on this machine"),
        ("model_folders: /share", "expected a list of absolute paths"),
        ("- a\n- b", "expected keys and values, found list"),
        ("a: [", "are not YAML"),
        ("device: cpu\ndevice: cuda", "the key 'device' is written twice"),
    ],
)
def test_a_broken_file_is_refused(call: Call, write: Write, text: str, sentence: str) -> None:
    file = write(text)
    code, _, err = call("models")
    assert code == 2
    assert str(file) in err and sentence in err
    (check,) = check_site()
    assert check.status == FAILED and sentence in check.text


def test_a_named_file_must_exist(write: Write) -> None:
    with pytest.raises(ConfigError, match="which does not exist; correct it, or unset it"):
        apply_site_settings()


def test_device_and_threads_hold_where_nothing_is_said(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("device: cuda\nthreads: 4\n")
    apply_site_settings()
    monkeypatch.setattr("napari_lrmil.core.features.devices.device_names", lambda: ("cpu",))
    assert resolve_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="name the device 'cuda', which this machine lacks; give --device"):
        resolve_device("auto")
    monkeypatch.setattr("napari_lrmil.core.features.devices.device_names", lambda: ("mps", "cuda", "cpu"))
    assert resolve_device("auto") == "cuda"
    threads: list[int] = []
    monkeypatch.setattr("napari_lrmil.core.threads.set_compute_threads", threads.append)
    leave_core_free()
    assert threads == [4]
    backend = choose_backend(BackendChoice(workers=2), slides=9)
    assert isinstance(backend, LocalProcesses)
    assert backend.threads == 2


@pytest.mark.parametrize(("name", "text"), [("NAPARI_LRMIL_THREADS", "many"), ("NAPARI_LRMIL_DEVICE", "gpu")])
def test_a_wrong_variable_is_named(write: Write, name: str, text: str) -> None:
    write("")
    os.environ[name] = text
    (check,) = check_site()
    assert f"{name} is '{text}'; expected" in check.text


def test_a_folder_of_models_on_a_share(call: Call, write: Write, tmp_path: Path) -> None:
    shutil.copytree(SHIPPED / "demo", tmp_path / "zoo" / "liver")
    write(f"model_folders: [{tmp_path}/zoo, {tmp_path}/away]\n")
    code, out, err = call("models")
    assert code == 0
    assert str(tmp_path / "zoo" / "liver") in out
    assert f"{tmp_path}/away: not there now" in err
    assert Bundle("liver").path == tmp_path / "zoo" / "liver"
    (tmp_path / "zoo" / "broken").mkdir()
    (tmp_path / "zoo" / "broken" / "lrmil.json").write_text("{}")
    listed = listed_model_uses()  # as the window lists them
    assert listed == shipped_model_uses() | {str(tmp_path / "zoo" / "liver"): "demo: phantoms only"}


def test_doctor_shows_each_value_with_its_source(write: Write) -> None:
    file = write("device: cpu\n")
    apply_site_settings()
    checks = {check.name: check.text for check in check_site()}
    assert checks["site settings"] == f"{file} sets device"
    assert checks["setting device"] == f"cpu; from: {file}"
    assert checks["setting threads"] == "all cores but one; from: default"
    assert "as the site's `device`; from:" in checks["setting device of the window"]
