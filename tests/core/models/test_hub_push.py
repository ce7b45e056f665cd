"""Push of a bundle to the stand-in of the hub: files, model card, licence, visibility."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from napari_lrmil.cli.console import FEW_SLIDES
from napari_lrmil.core.errors import BundleError
from napari_lrmil.core.models.bundle import SHIPPED, Bundle
from napari_lrmil.core.models.card import CARD, STUDENT, TEACHER
from napari_lrmil.core.models.hub_card import FEWEST_TEST_SLIDES, hub_card_text, write_repository
from napari_lrmil.core.models.hub_push import push_bundle
from napari_lrmil.core.models.sharing_terms import sharing_terms
from support.hub_standin import HubStandIn, serve_hub, use_hub

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub's own upload


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    with serve_hub() as server:
        use_hub(server.url, tmp_path / "cache", monkeypatch)
        yield server


def changed_bundle(folder: Path, licence: str, teacher: str | None = None) -> Bundle:
    """Return a copy of the demo whose encoders have another licence."""
    shutil.copytree(SHIPPED / "demo", folder)
    card: dict[str, Any] = json.loads((folder / CARD).read_text())
    card["licence"] = licence
    if teacher is None:
        card["teacher"] = None
        del card["hashes"][TEACHER]
        (folder / TEACHER).unlink()
    else:
        card["teacher"]["encoder"]["licence"] = teacher
    (folder / CARD).write_text(json.dumps(card))
    return Bundle(folder)


def push(name: str = "owner/new", bundle: str = "demo", **options: Any) -> Any:
    model = Bundle(bundle)
    return push_bundle(model, name, sharing_terms(model), **options)


def test_a_pushed_bundle_is_private_and_comes_back_as_it_was(hub: HubStandIn) -> None:
    pushed = push()
    assert (pushed.is_private, pushed.commit) == (True, "b" * 40)
    repository = hub.repositories["owner/new"]
    assert repository.private
    assert set(repository.files) == {CARD, STUDENT, TEACHER, "README.md", "config.json", "model.safetensors"}
    assert Bundle("hf:owner/new").sha256 == Bundle("demo").sha256
    _ = Bundle("hf:owner/new").teacher


def test_the_model_card_has_a_head_that_the_hub_reads(hub: HubStandIn) -> None:
    from huggingface_hub import ModelCard

    push()
    text = hub.repositories["owner/new"].files["README.md"].decode()
    card = ModelCard(text)
    assert card.data.license == "bsd-3-clause"
    assert card.data.library_name == "napari-lrmil"
    head = yaml.safe_load(text.split("---")[1])
    values = {result["dataset"]["name"]: result["metrics"][0]["value"] for result in head["model-index"][0]["results"]}
    assert values == {"test slides of the training cohort": 1.0}  # of validation slides, by which it was chosen, none
    (metric,) = head["model-index"][0]["results"][0]["metrics"]
    assert metric["name"] == "AUROC (1.000 to 1.000), 100 slides, interval over patients"
    assert metric["args"] == {"n_slides": 100, "low": 1.0, "high": 1.0}
    (result,) = card.data.eval_results
    assert (result.metric_value, result.dataset_split) == (1.0, "test")
    for part in ("## Intended use", "phantoms only", "--bundle hf:owner/new", "## Licence", "Not a diagnosis"):
        assert part in text


INTERVAL = "1.000 (0.500 to 1.000)"


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        (
            {"student, val: AUROC": "1.000 (0.500 to 1.000), 40 slides of 40 patients, interval over patients"},
            "test slides",
        ),
        (
            {"student, test: AUROC": "1.000 (0.500 to 1.000), 2 slides of 2 patients, interval over patients"},
            "2 test slides",
        ),
        ({"student, test: AUROC": "0.9"}, "without an interval"),
    ],
)
def test_figures_of_few_or_of_validation_slides_are_not_in_the_index(
    metrics: dict[str, str], reason: str, tmp_path: Path
) -> None:
    bundle = changed_bundle(tmp_path / "alone", "BSD-3-Clause")
    card = json.loads((bundle.path / CARD).read_text())
    (bundle.path / CARD).write_text(json.dumps(card | {"metrics": metrics}))
    bundle = Bundle(bundle.path)
    text = hub_card_text(bundle, "owner/new", sharing_terms(bundle))
    assert "model-index" not in yaml.safe_load(text.split("---")[1])
    (sentence,) = re.findall(r"The hub's index of results has no figure of this model: (.*)\.", text)
    assert reason in sentence and all(value in text for value in metrics.values())


def test_few_slides_are_as_many_as_on_the_command_line() -> None:
    assert FEWEST_TEST_SLIDES == FEW_SLIDES


def test_the_layout_of_the_mixin_loads_the_student(tmp_path: Path) -> None:
    """A class that knows ``config.json`` alone gets the very student."""
    from huggingface_hub import PyTorchModelHubMixin

    from napari_lrmil.core.encoders import AlignedEncoder, EncoderSpec, build_encoder
    from napari_lrmil.core.models.mil import build_mil

    class Student(nn.Module, PyTorchModelHubMixin):
        def __init__(
            self, encoder: dict[str, Any], dim: int, hidden: int, num_classes: int, top_share: float | None = None
        ) -> None:
            super().__init__()
            self.encoder = AlignedEncoder(build_encoder(EncoderSpec(**encoder)), dim)
            self.mil = build_mil(dim, num_classes, hidden, top_share)

    bundle = Bundle("demo")
    write_repository(tmp_path, bundle, "owner/new", sharing_terms(bundle))
    loaded = Student.from_pretrained(str(tmp_path))
    for key, value in bundle.student.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_what_the_new_bundle_lacks_is_removed(hub: HubStandIn, tmp_path: Path) -> None:
    push()
    hub.repositories["owner/new"].files["notes.txt"] = b"of the owner"
    bundle = changed_bundle(tmp_path / "alone", "BSD-3-Clause")
    push_bundle(bundle, "owner/new", sharing_terms(bundle))
    assert TEACHER not in hub.repositories["owner/new"].files
    assert "notes.txt" in hub.repositories["owner/new"].files


def test_visibility_is_never_changed_without_a_word(hub: HubStandIn) -> None:
    assert not push(public=True).is_private
    assert not hub.repositories["owner/new"].private
    with pytest.raises(BundleError, match="exists and is public; add --public"):
        push()
    push(public=True)
    push("owner/hidden")
    with pytest.raises(BundleError, match="exists and is private; leave --public out"):
        push("owner/hidden", public=True)


def test_a_hub_that_makes_it_public_gets_nothing(hub: HubStandIn) -> None:
    hub.ignores_visibility = True
    with pytest.raises(BundleError, match="made the new repository public"):
        push()
    assert hub.repositories["owner/new"].files == {}


def test_a_push_needs_a_token_and_the_network(hub: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with pytest.raises(BundleError, match="leave @v1 out"):
        push("owner/new@v1")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(BundleError, match="there is no access token; call `hf auth login` once"):
        push()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BundleError, match="this program is offline"):
        push()
    assert hub.calls == []


def test_a_damaged_bundle_is_not_pushed(hub: HubStandIn, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(SHIPPED / "demo", folder)
    (folder / STUDENT).write_bytes(b"other")
    with pytest.raises(BundleError, match="does not match the hash"):
        push(bundle=str(folder))
    assert hub.calls == []


# ---------------------------------------------------------------- licences


@pytest.mark.parametrize("licence", ["CC-BY-NC-ND-4.0", "CC BY-NC-ND 4.0", "MIT, CC-BY-NC-ND-4.0", "no derivatives"])
@pytest.mark.parametrize("with_teacher", [True, False])
def test_a_licence_that_forbids_is_obeyed_even_without_the_teacher(
    tmp_path: Path, licence: str, with_teacher: bool
) -> None:
    bundle = changed_bundle(tmp_path / "b", licence, licence if with_teacher else None)
    forbidden = re.escape(licence.removeprefix("MIT, "))
    with pytest.raises(BundleError, match=f"{forbidden} of the encoder .* forbids to share") as caught:
        sharing_terms(bundle, "MIT")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("licence", ["unknown", "lunit-non-commercial", "Apache 2.0 with conditions"])
def test_a_licence_that_is_not_known_must_be_stated(tmp_path: Path, licence: str) -> None:
    bundle = changed_bundle(tmp_path / "b", licence)
    with pytest.raises(BundleError, match=f"does not know whether the licence '{licence}'"):
        sharing_terms(bundle)
    terms = sharing_terms(bundle, "a letter of the makers")
    assert (terms.hub_id, "a letter of the makers" in terms.licences) == ("other", True)


@pytest.mark.parametrize(
    ("licence", "teacher", "expected"),
    [
        ("Apache 2.0", "BSD-3-Clause", "apache-2.0"),
        ("CC-BY-NC-4.0, BSD-3-Clause", None, "other"),
    ],
)
def test_the_header_has_the_licence_of_all_encoders(
    tmp_path: Path, licence: str, teacher: str | None, expected: str
) -> None:
    assert sharing_terms(changed_bundle(tmp_path / "b", licence, teacher)).hub_id == expected
