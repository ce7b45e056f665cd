"""Damaged, hostile and impossible bundles are refused when they are loaded, with what was seen."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from napari_lrmil.core.errors import BundleError, EncoderError
from napari_lrmil.core.hashing import file_sha256
from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.models.card import CARD, STUDENT
from napari_lrmil.core.models.pooling import pool_instances
from support.fake_slides import one_sentence
from support.networks import untrained_bundle

Tensors = dict[str, np.ndarray[Any, np.dtype[Any]]]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_bundle(tmp_path_factory.mktemp("bundle") / "b", teacher=False).path


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    for file in original.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def _edit_card(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / CARD).read_text(encoding="utf-8"))
    change(content)
    (folder / CARD).write_text(json.dumps(content), encoding="utf-8")


def _seal(folder: Path) -> None:
    """Write the hash of the weights into the card, so that only their content is wrong."""
    _edit_card(folder, lambda card: card["hashes"].update({STUDENT: file_sha256(folder / STUDENT)}))


def _refusal(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        _ = Bundle(folder).student_mil
    assert one_sentence(caught.value) and caught.value.exit_code == 2
    return str(caught.value)


def _with(name: str, change: Callable[[Any], Any]) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: change(tensors[name])})


def _first(value: float) -> Callable[[Any], Any]:
    def change(values: Any) -> Any:
        values = values.copy()
        values.flat[0] = value
        return values

    return change


RUNNING = "encoder.encoder.net.conv_stem.conv_3x3.normalization.running_var"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_with("mil.V.weight", _first(math.nan)), r"1 of \d+ values of tensor mil.V.weight are NaN or infinite"),
        (_with("mil.classifier.weight", _first(-math.inf)), "tensor mil.classifier.weight are NaN"),
        (_with("mil.deviation", _first(0)), "mil.deviation has values of 0 or below"),
        (_with("mil.deviation", lambda a: -a), "mil.deviation has values of 0 or below"),
        (_with(RUNNING, _first(-1)), "negative values, which cannot be variances"),
        (_with("mil.V.weight", lambda a: a > 0), "has type BOOL; expected F16 or F32"),
        (_with("mil.V.weight", lambda a: a.astype(np.float64)), "has type F64"),
        (_with("mil.V.weight", lambda a: np.ascontiguousarray(a.T)), "do not fit the card: tensor mil.V.weight has"),
        (_with("mil.w.weight", lambda a: a.ravel()), r"has shape \(64,\), and the card states \(1, 64\)"),
        (lambda tensors: tensors.pop("mil.w.weight"), "tensor mil.w.weight is missing"),
    ],
)
def test_impossible_tensors_are_refused_with_their_name(
    folder: Path, change: Callable[[Tensors], object], reason: str
) -> None:
    tensors = load_file(folder / STUDENT)
    change(tensors)
    save_file(tensors, folder / STUDENT)
    _seal(folder)
    assert re.search(reason, _refusal(folder))


OVERFLOWING = json.dumps({"mil.mean": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 4]}}).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"hello", "the bundle is damaged"),
        (b"<!DOCTYPE html><html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
        (b"\x80\x04\x95" + bytes(99), "it is a pickle, which could run code"),
        (b"PK\x03\x04" + bytes(99), "it is a zip archive"),
        ((2**40).to_bytes(8, "little") + b"{}", "the bundle is damaged"),
        (len(OVERFLOWING).to_bytes(8, "little") + OVERFLOWING + bytes(4), "the bundle is damaged"),
    ],
)
def test_what_is_no_safetensors_file_is_named(folder: Path, content: bytes, reason: str) -> None:
    (folder / STUDENT).write_bytes(content)
    _seal(folder)
    assert reason in _refusal(folder)


def test_a_file_that_was_cut_is_refused(folder: Path) -> None:
    (folder / STUDENT).write_bytes((folder / STUDENT).read_bytes()[:-1000])
    _seal(folder)
    assert "not a safetensors file" in _refusal(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"classes": ["a", "a"]}, "class 'a' is named twice"),
        ({"classes": ["a", "a "]}, "class 'a' is named twice"),
        ({"classes": ["a", " "]}, "' ' is no name of a class"),
        ({"classes": ["a", "b\n"]}, "is no name of a class"),
        ({"classes": ["a", "b" * 10_000]}, "is no name of a class"),
        ({"classes": ["a"]}, "classes: "),
        ({"classes": [1, 2]}, "classes.0: "),
        ({"lr_mpp": math.nan}, "lr_mpp: "),
        ({"lr_mpp": math.inf}, "lr_mpp: "),
        ({"hr_mpp": 1e-9, "lr_mpp": 4e-9}, "hr_mpp: "),
        ({"lr_patch_px": 0}, "lr_patch_px: "),
        ({"lr_patch_px": 2**20, "hr_patch_px": 2**20}, "hr_patch_px: "),
        ({"student_input_px": -5}, "student_input_px: "),
        ({"student_input_px": 10**6}, "student_input_px: "),
        ({"temperature": math.nan}, "temperature: "),
        ({"temperature": 1e-300}, "temperature: "),
        ({"tissue": {"min_share": math.nan}}, "tissue.min_share: "),
        ({"tissue": {"min_share": 7}}, "min_share up to 1"),
        ({"name": ""}, "name: "),
        ({"hashes": None}, "hashes: "),
        ({"hashes": {STUDENT: 5}}, "hashes.student.safetensors: "),
    ],
)
def test_impossible_values_of_a_card_are_refused_with_their_key(
    folder: Path, change: dict[str, Any], reason: str
) -> None:
    _edit_card(folder, lambda card: card.update(change))
    assert reason in _refusal(folder)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("dim", 0, "student.dim: "),
        ("dim", 10**9, "student.dim: "),
        ("hidden", -1, "student.hidden: "),
        ("mean", [math.nan, 0.5, 0.5], "student.encoder.mean.0: "),
        ("deviation", [0, 0.5, 0.5], "must be above 0"),
        ("family", "lazyslide", "only a teacher can have"),
        ("settings", {"depth_multiplier": 1e6}, "settings.depth_multiplier is 1000000.0"),
        ("settings", {"depth_multiplier": math.nan}, "settings.depth_multiplier is nan"),
        ("settings", {"num_hidden_layers": 5000}, "settings.num_hidden_layers is 5000"),
    ],
)
def test_an_impossible_network_is_refused_with_its_key(folder: Path, key: str, value: object, reason: str) -> None:
    def change(card: dict[str, Any]) -> None:
        (card["student"] if key in ("dim", "hidden") else card["student"]["encoder"])[key] = value

    _edit_card(folder, change)
    assert reason in _refusal(folder)


@pytest.mark.parametrize(
    "settings", [{"depth_multiplier": 60_000}, {"depth_multiplier": 0}, {"hidden_act": "nothing"}, {"unknown": 1}]
)
def test_settings_that_fit_no_weights_are_refused_before_they_fill_the_memory(
    folder: Path, settings: dict[str, Any]
) -> None:
    _edit_card(folder, lambda card: card["student"]["encoder"].update(settings=settings))
    with pytest.raises(BundleError, match="the bundle is damaged") as caught:
        _ = Bundle(folder).student
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "content", [b"[1]", b"null", b"", b"[" * 100_000, b"\xff\xfe{", b'{"schema_version": ' + b"9" * 5000 + b"}"]
)
def test_a_card_that_is_no_json_object_is_refused(folder: Path, content: bytes) -> None:
    (folder / CARD).write_bytes(content)
    assert CARD in _refusal(folder)


def test_a_card_with_a_byte_order_mark_is_read(folder: Path) -> None:
    (folder / CARD).write_bytes(b"\xef\xbb\xbf" + (folder / CARD).read_bytes())
    assert Bundle(folder).student_mil.bias.shape == (2,)


def test_the_tensors_are_checked_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from napari_lrmil.core.models import bundle as module

    calls: list[Path] = []
    check = module.check_weights
    monkeypatch.setattr(module, "check_weights", lambda path, *rest: (calls.append(path), check(path, *rest)))
    bundle = Bundle(folder)
    for _ in range(3):
        bundle.verified_file(STUDENT)
    assert len(calls) == 1


def test_features_that_are_not_finite_give_a_sentence_and_no_probability(folder: Path) -> None:
    mil = Bundle(folder).student_mil
    features = np.zeros((5, len(mil.mean)), np.float32)
    features[3, 0] = math.nan
    with pytest.raises(EncoderError, match="no probability"):
        pool_instances(mil, features)
