"""Commands ``models`` and ``push``, and ``--bundle hf:…`` of the commands that name a bundle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from napari_lrmil.core.models.bundle import SHIPPED, Bundle
from napari_lrmil.core.models.card import CARD
from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide
from support.hub_standin import HubStandIn, serve_hub, use_hub

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    with serve_hub() as server:
        use_hub(server.url, tmp_path / "cache", monkeypatch)
        yield server


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide(tmp_path_factory.mktemp("slide"), PhantomSlide("phantom", LESION, 5, (1024, 768)))


def test_models_lists_shipped_local_and_cached(call: Call, hub: HubStandIn, tmp_path: Path) -> None:
    hub.publish("owner/tiny", SHIPPED / "demo")
    shutil.copytree(SHIPPED / "breast-idc", tmp_path / "zoo" / "breast")
    shutil.copytree(SHIPPED / "demo", tmp_path / "zoo" / "broken")
    (tmp_path / "zoo" / "broken" / CARD).write_text("{}")
    code, out, err = call("models", "--folder", tmp_path / "zoo", "--update", "hf:owner/tiny")
    assert code == 0
    lines = {line.split()[1]: line for line in out.splitlines()[1:]}
    assert lines["breast-idc"].startswith("shipped")
    assert "breast H&E: invasive carcinoma" in lines["breast-idc"]
    assert "  8  " in lines["breast-idc"]
    assert "benign, carcinoma" in lines["breast-idc"]
    assert lines[str(tmp_path / "zoo" / "breast")].startswith("local")
    assert lines["hf:owner/tiny"].startswith("cached")
    assert "broken: not listed:" in err
    listed = json.loads(call("models", "--json")[1])
    assert [(model["place"], model["name"]) for model in listed if model["place"] == "cached"] == [
        ("cached", "hf:owner/tiny")
    ]


def test_a_folder_that_is_not_there(call: Call, tmp_path: Path) -> None:
    code, _, err = call("models", "--folder", tmp_path / "nowhere")
    assert code == 2
    assert "there is no such folder" in err


def test_predict_takes_a_hub_name(call: Call, hub: HubStandIn, slide: Path, tmp_path: Path) -> None:
    hub.publish("owner/tiny", SHIPPED / "demo")
    arguments = (
        "predict",
        slide,
        "--bundle",
        "hf:owner/tiny",
        "--out",
        tmp_path / "out",
        "--device",
        "cpu",
        "--report",
    )
    code, _, err = call(*arguments)
    assert code == 0
    assert "hf:owner/tiny: 4 files" in err
    written = json.loads((tmp_path / "out" / "phantom" / "prediction.json").read_text())
    assert written["bundle_sha256"] == Bundle("demo").sha256
    assert "--bundle hf:owner/tiny --device cpu" in (tmp_path / "out" / "phantom" / "report.html").read_text()
    _, _, err = call(*arguments)
    assert "downloaded" not in err


@pytest.mark.parametrize("command", ["predict", "compare", "bench"])
def test_every_command_refuses_an_absent_name_in_a_sentence(
    call: Call, hub: HubStandIn, slide: Path, tmp_path: Path, command: str
) -> None:
    code, _, err = call(command, slide, "--bundle", "hf:owner/nothing", "--out", tmp_path / "out", "--device", "cpu")
    assert code == 2
    assert "owner/nothing does not exist, or is private" in err


def test_push_writes_the_files_without_a_network(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("push", "demo", "owner/new", "--write-only", tmp_path / "files")
    assert code == 0
    assert "files of hf:owner/new" in out
    assert (tmp_path / "files" / "README.md").read_text().startswith("---\nlicense: bsd-3-clause\n")


def test_push_offline_is_a_wrong_call(call: Call) -> None:
    code, _, err = call("push", "demo", "owner/new")
    assert code == 2
    assert "hf:owner/new: this program is offline" in err


@pytest.mark.slow
@pytest.mark.parametrize("way", ["mirror", "proxy"])
def test_mirror_and_proxy_of_the_environment(hub: HubStandIn, tmp_path: Path, way: str) -> None:
    """In a process of its own, which reads the variables as a user sets them."""
    hub.publish("owner/tiny", SHIPPED / "demo")
    unset = {"HF_HUB_OFFLINE", "NO_PROXY", "no_proxy", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    if way == "mirror":
        environment["HF_ENDPOINT"] = hub.url
    else:
        environment |= {"HF_ENDPOINT": "http://hub.invalid", "HTTP_PROXY": hub.url}
    command = [sys.executable, "-m", "napari_lrmil", "models", "--update", "hf:owner/tiny"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cached   hf:owner/tiny" in done.stdout
    assert ("GET", "/api/models/owner/tiny") in [(method, path.partition("/revision")[0]) for method, path in hub.calls]
