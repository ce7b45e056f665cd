"""Bundles: round trip, hashes, schema, damaged files, and a student that never touches its teacher's file."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from napari_lrmil.core import encoders
from napari_lrmil.core.encoders import AlignedEncoder, LoadedEncoder, module_sha256, round_to_half
from napari_lrmil.core.errors import BundleError, LrmilError
from napari_lrmil.core.events import Finished, Notice
from napari_lrmil.core.geometry import PatchPlan
from napari_lrmil.core.hashing import file_sha256
from napari_lrmil.core.inference.predict import predict
from napari_lrmil.core.inference.teacher_patches import TeacherPatches
from napari_lrmil.core.models import networks
from napari_lrmil.core.models.bundle import Bundle, find_bundle
from napari_lrmil.core.models.card import CARD, README, SCHEMA_VERSION, STUDENT, TEACHER, card_text
from napari_lrmil.core.models.mil import GatedAttentionMIL
from napari_lrmil.core.models.networks import StudentNetwork, TeacherNetwork, write_bundle
from napari_lrmil.core.patching.color import CohortColour
from napari_lrmil.core.patching.grid import find_tissue_grid
from napari_lrmil.core.patching.stain import StainStatistics, StainTarget, measure_stain
from napari_lrmil.core.patching.tissue import TissueConfig
from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide
from napari_lrmil.core.slides.slide import Slide
from support.fake_slides import lively, lively_bundle, one_sentence
from support.networks import CLASSES, Borrowed, untrained_bundle, untrained_encoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return untrained_bundle(tmp_path / "b").path


def edit_card(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / CARD).read_text(encoding="utf-8"))
    change(content)
    (folder / CARD).write_text(json.dumps(content), encoding="utf-8")


def check_refused(action: Callable[[], object], match: str, field: str | None = None) -> None:
    with pytest.raises(BundleError, match=match) as caught:
        action()
    assert one_sentence(caught.value) and caught.value.exit_code == 2
    if field is not None:
        assert caught.value.field == field


def test_what_is_written_is_what_is_opened(tmp_path: Path) -> None:
    encoder = lively(untrained_encoder())
    student = StudentNetwork(AlignedEncoder(encoder, 5), GatedAttentionMIL(5, 3, hidden=7))
    teacher = TeacherNetwork(lively(untrained_encoder(), 1), GatedAttentionMIL(encoder.dim, 3, hidden=9))
    for network in (student, teacher):
        round_to_half(network.eval())
    card = {
        "name": "rt", "classes": ("a", "b", "c"), "hr_mpp": 0.5, "lr_mpp": 4.0, "hr_patch_px": 64, "lr_patch_px": 32,
        "student_input_px": 96, "tissue": TissueConfig(min_share=0.4), "temperature": 1.7, "cohort": {"train": 12},
        "metrics": {"auroc": 0.9},
    }  # fmt: skip
    write_bundle(tmp_path / "deep" / "b", card, student, teacher)
    bundle = Bundle(tmp_path / "deep" / "b")
    assert {k: getattr(bundle.card, k) for k in card} == card
    assert bundle.card.plan == PatchPlan(0.5, 4.0, 64, 32) and bundle.card.schema_version == SCHEMA_VERSION
    assert bundle.name == "rt" and bundle.has_teacher
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        for ours, theirs in ((bundle.student, student), (bundle.teacher, teacher)):
            embedding = theirs.encoder(pixels).embedding
            assert torch.equal(ours.encoder(pixels).embedding, embedding)
            assert torch.equal(ours.mil(embedding).logits, theirs.mil(embedding).logits)
            assert embedding.std() > 0.01, "weights that answer nothing would hide a difference"
    assert sorted(p.name for p in bundle.path.iterdir()) == sorted([CARD, README, STUDENT, TEACHER])


def test_networks_arrive_frozen_and_in_evaluation_mode(folder: Path) -> None:
    bundle = Bundle(folder)
    for network in (bundle.student, bundle.teacher):
        assert not any(m.training for m in network.modules())
        assert not any(p.requires_grad for p in network.parameters())


def test_the_student_works_without_the_teachers_file(folder: Path) -> None:
    """No HR weight is loaded for a student: its file may as well be gone."""
    (folder / TEACHER).unlink()
    bundle = Bundle(folder)
    assert bundle.student.mil.classes == 2
    check_refused(lambda: bundle.teacher, r"teacher\.safetensors is missing", TEACHER)


def test_a_bundle_without_a_teacher_says_so(tmp_path: Path) -> None:
    bundle = untrained_bundle(tmp_path / "b", teacher=False)
    assert not bundle.has_teacher and not (bundle.path / TEACHER).exists()
    check_refused(lambda: bundle.teacher, "has no teacher", "teacher")


def test_terms_of_a_teacher_that_is_only_named_are_told_before_it_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking for it may fetch it: licence and gating come first, and a student alone asks for neither."""
    asked: list[str] = []
    monkeypatch.setattr(encoders, "encoder_notice", lambda name: f"{name}: gated, its licence")

    def found(name: str) -> LoadedEncoder:
        asked.append(name)
        return LoadedEncoder(Borrowed(), module_sha256(Borrowed().net))

    monkeypatch.setattr(networks, "resolve_encoder", found)
    bundle = untrained_bundle(tmp_path / "b", teachers=Borrowed())
    with Slide(write_slide(tmp_path, PhantomSlide("phantom", LESION, 5, (1024, 768)))) as slide:
        alone = list(predict(slide, bundle, device=torch.device("cpu")))
        assert not asked and not [e for e in alone if isinstance(e, Notice) and "licence" in e.message]
        stream = predict(slide, bundle, device=torch.device("cpu"), teacher=TeacherPatches.ALL)
        assert next(e for e in stream if isinstance(e, Notice)).message == "lazyslide:x: gated, its licence"
        assert not asked
        assert isinstance(list(stream)[-1], Finished) and asked == ["lazyslide:x"]


def test_a_teacher_encoder_of_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle names the encoder by its hash: other weights of that name, or none, would be another teacher."""
    bundle = untrained_bundle(tmp_path / "b", teachers=Borrowed())
    own = module_sha256(Borrowed().net)
    other = f"{'0' if own[0] != '0' else '1'}{own[1:]}"
    for answer in (LoadedEncoder(Borrowed(), other), None):
        monkeypatch.setattr(networks, "resolve_encoder", lambda _, answer=answer: answer)
        check_refused(
            lambda: Bundle(bundle.path).teacher, "is not the encoder that this bundle was trained with", TEACHER
        )
    monkeypatch.setattr(networks, "resolve_encoder", lambda _: LoadedEncoder(Borrowed(), own))
    assert Bundle(bundle.path).teacher.mil.classes == 2


def test_a_teacher_that_is_in_the_bundle_has_no_terms_to_tell(folder: Path, tmp_path: Path) -> None:
    whole, none = Bundle(folder), untrained_bundle(tmp_path / "s", teacher=False)
    assert (whole.names_teacher, whole.teacher_notice, none.names_teacher, none.teacher_notice) == (
        False,
        None,
        False,
        None,
    )


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, "1", None])
def test_another_schema_version_is_refused_with_both_numbers(folder: Path, version: object) -> None:
    edit_card(folder, lambda c: c.update(schema_version=version))
    check_refused(
        lambda: Bundle(folder), f"schema version {version}, this program reads {SCHEMA_VERSION}", "schema_version"
    )


def test_another_schema_version_is_told_before_unknown_keys(folder: Path) -> None:
    edit_card(folder, lambda c: c.update(schema_version=SCHEMA_VERSION + 1, brand_new=1))
    check_refused(lambda: Bundle(folder), "schema version", "schema_version")


@pytest.mark.parametrize("file", [STUDENT, TEACHER])
def test_altered_weights_do_not_match_their_hash(folder: Path, file: str) -> None:
    tensors = load_file(folder / file)
    tensors["mil.classifier.bias"] += 1
    save_file(tensors, folder / file)
    bundle = Bundle(folder)
    check_refused(
        lambda: bundle.student if file == STUDENT else bundle.teacher, f"{file} does not match the hash", file
    )
    other = bundle.teacher if file == STUDENT else bundle.student
    assert other.mil.classes == 2, "the other network is untouched"


def test_one_flipped_byte_is_seen(folder: Path) -> None:
    content = bytearray((folder / STUDENT).read_bytes())
    content[-1] ^= 1
    (folder / STUDENT).write_bytes(content)
    check_refused(lambda: Bundle(folder).student, "does not match the hash", STUDENT)


def test_a_hash_that_is_not_listed_is_no_match(folder: Path) -> None:
    edit_card(folder, lambda c: c["hashes"].pop(STUDENT))
    check_refused(lambda: Bundle(folder).student, "does not match the hash", STUDENT)


def test_missing_weights_are_one_sentence(folder: Path) -> None:
    (folder / STUDENT).unlink()
    check_refused(lambda: Bundle(folder).student, r"student\.safetensors is missing", STUDENT)


def test_weights_that_do_not_fit_the_card_are_refused(folder: Path) -> None:
    edit_card(folder, lambda c: c.update(classes=["a", "b", "c"]))
    check_refused(lambda: Bundle(folder).student, "do not fit", STUDENT)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"schema_version": 1}', "\x00"])
def test_a_damaged_card_is_one_sentence(folder: Path, text: str) -> None:
    (folder / CARD).write_text(text)
    check_refused(lambda: Bundle(folder), r"lrmil\.json cannot be read.*damaged", CARD)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(unknown=1),
        lambda c: c.update(classes=3),
        lambda c: c.pop("lr_mpp"),
        lambda c: c["student"].update(dim="wide"),
        lambda c: c.update(lr_mpp=1.25),  # 2.5 HR patches along an LR patch
        lambda c: c.update(temperature=0),
        lambda c: c.update(temperature=-1.5),
        lambda c: c.update(teacher_temperature=0),
        pytest.param(lambda c: c["student"]["encoder"].update(family="alexnet"), id="family"),
    ],
)
def test_a_card_that_means_nothing_here_is_one_sentence(
    folder: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    edit_card(folder, change)
    check_refused(lambda: Bundle(folder), "cannot be read", CARD)


def test_a_folder_that_is_no_bundle_and_a_name_that_is_none(tmp_path: Path) -> None:
    check_refused(lambda: Bundle(tmp_path), r"has no lrmil\.json", CARD)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / CARD).write_text("{}")
    check_refused(lambda: Bundle(tmp_path), r"a training run; its model is .*bundle$", CARD)
    check_refused(lambda: Bundle(tmp_path / "nowhere"), "no bundle with this path or name", CARD)
    check_refused(lambda: find_bundle("no-such-bundle"), "shipped bundle", CARD)


def test_a_folder_of_a_shipped_bundles_name_does_not_hide_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`napari-lrmil demo --out demo` makes a folder `demo`; `--bundle demo` still means the shipped bundle."""
    shipped = untrained_bundle(tmp_path / "shipped" / "demo").path
    monkeypatch.setattr("napari_lrmil.core.models.bundle.SHIPPED", shipped.parent)
    (tmp_path / "work" / "demo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    assert find_bundle("demo") == shipped


def test_a_bundle_in_the_working_folder_comes_before_a_shipped_one_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that holds a bundle means that bundle: the other would answer in its place without a word."""
    shipped = untrained_bundle(tmp_path / "shipped" / "demo").path
    monkeypatch.setattr("napari_lrmil.core.models.bundle.SHIPPED", shipped.parent)
    own = untrained_bundle(tmp_path / "work" / "demo").path
    monkeypatch.chdir(tmp_path / "work")
    assert find_bundle("demo").resolve() == own.resolve()


def test_an_interrupted_write_leaves_no_card_so_no_half_bundle_opens(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    bundle = Bundle(folder)
    student, teacher = bundle.student, bundle.teacher
    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bundle(folder, {"name": "x", "classes": CLASSES}, student, teacher)
    check_refused(lambda: Bundle(folder), r"has no lrmil\.json", CARD)
    assert not list(folder.glob(".*")), "no temporary files"


def test_hashes_are_those_of_the_files_and_tell_models_apart(tmp_path: Path) -> None:
    one, other = untrained_bundle(tmp_path / "a"), untrained_bundle(tmp_path / "b", teacher=False)
    assert one.card.hashes == {f: file_sha256(one.path / f) for f in (STUDENT, TEACHER)}
    assert len(one.sha256) == 64 and one.sha256 != other.sha256
    assert Bundle(one.path).sha256 == one.sha256


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 2.0},
        {"teacher_temperature": 2.0},
        {"lr_mpp": 4.0},
        {"hr_mpp": 0.25},
        {"lr_patch_px": 256},
        {"hr_patch_px": 64},
        {"student_input_px": 224},
        {"classes": ("lesion", "normal")},
        {"tissue": TissueConfig(min_share=0.5)},
        {"normalisation": "another"},
        {"name": "another"},  # stands in the result
        {"about": "Not for the lung."},  # a warning in every result
        {"licence": "MIT"},  # a model under other terms is not the same model
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_a_result_changes_the_bundles_hash(tmp_path: Path, change: dict[str, Any]) -> None:
    """Resume and caches reuse results by this hash: what is left out of it would be taken from another model."""
    plain, changed = untrained_bundle(tmp_path / "a"), untrained_bundle(tmp_path / "b", **change)
    assert plain.card.hashes == changed.card.hashes, "the weights are the same"
    assert plain.sha256 != changed.sha256


@pytest.mark.parametrize("change", [{"cohort": {"train": 12}}, {"metrics": {"auroc": 0.9}}, {"version": "0.0.1"}])
def test_where_a_model_was_trained_and_how_well_is_no_part_of_the_hash(folder: Path, change: dict[str, Any]) -> None:
    before = Bundle(folder).sha256
    edit_card(folder, lambda c: c.update(change))
    assert Bundle(folder).sha256 == before


def test_a_bundle_travels_to_another_process_without_what_is_compiled_for_this_one(folder: Path) -> None:
    """A compiled network cannot be pickled; neither can this function."""
    bundle = Bundle(folder)
    bundle.prepared["a runtime"] = lambda: None
    copy = pickle.loads(pickle.dumps(bundle))  # our own bytes
    assert copy.prepared == {} and copy.sha256 == bundle.sha256 and copy.path == bundle.path
    assert "a runtime" in bundle.prepared, "this process keeps its own"


COLOUR = CohortColour((0.2, 0.3, 0.1), (0.05, 0.06, 0.04), (0.02, 0.03, 0.02), (0.02, 0.02, 0.02), 9)


def test_the_colour_of_the_training_slides_is_kept_and_no_part_of_the_hash(tmp_path: Path) -> None:
    """It changes a warning, never a probability; bundles from before it was measured keep their hash."""
    plain, coloured = untrained_bundle(tmp_path / "a"), untrained_bundle(tmp_path / "b", colour=COLOUR)
    assert coloured.card.colour == COLOUR and Bundle(coloured.path).card.colour == COLOUR
    assert plain.card.colour is None and plain.sha256 == coloured.sha256


def test_a_bundle_written_before_colour_was_measured_still_opens(folder: Path) -> None:
    before = Bundle(folder).sha256
    edit_card(folder, lambda c: c.pop("colour"))
    assert Bundle(folder).card.colour is None and Bundle(folder).sha256 == before


def test_no_pickle_in_a_bundle(folder: Path) -> None:
    assert {p.suffix for p in folder.iterdir()} == {".json", ".md", ".safetensors"}


def test_the_card_says_research_use_licence_and_whether_it_is_calibrated(folder: Path, tmp_path: Path) -> None:
    text = (folder / README).read_text(encoding="utf-8")
    assert text == card_text(Bundle(folder).card)
    assert "Research use only" in text and "BSD-3-Clause" in text and "Licence" in text
    assert "normal, lesion" in text and "not calibrated" in text and "2 µm per pixel" in text
    calibrated = untrained_bundle(tmp_path / "c", temperature=1.3, cohort={"train slides": 12})
    text = card_text(calibrated.card)
    assert "calibrated on validation slides" in text and "train slides: 12" in text


def test_the_licence_is_that_of_both_encoders_the_teachers_also_where_only_its_name_is_kept(tmp_path: Path) -> None:
    """The student was distilled from the teacher's encoder, so its terms hold for the student too."""
    bundle = untrained_bundle(tmp_path / "b", teachers=Borrowed())
    assert bundle.card.licence == "BSD-3-Clause, CC-BY-NC-ND-4.0"
    assert "Licence: BSD-3-Clause, CC-BY-NC-ND-4.0." in (bundle.path / README).read_text(encoding="utf-8")
    assert set(load_file(bundle.path / TEACHER)) == {f"mil.{name}" for name in bundle.student.mil.state_dict()}, (
        "weights that are not ours to share stay out of the bundle"
    )


def test_every_bundle_error_is_the_families(folder: Path) -> None:
    (folder / CARD).unlink()
    with pytest.raises(LrmilError):
        Bundle(folder)


def test_a_stain_target_travels_and_is_left_out_without_one(tmp_path: Path) -> None:
    """Old programs refuse a model that expects another colour; cards without a target are as before."""
    statistics = StainStatistics((0.2, 0.5, 0.3), (70.0, 25.0, -10.0), (12.0, 9.0, 5.0), 9000)
    target = StainTarget("density_gain", statistics)
    assert Bundle(lively_bundle(tmp_path / "b", stain=target).path).card.stain == target
    lively_bundle(tmp_path / "plain")
    assert "stain" not in json.loads((tmp_path / "plain" / CARD).read_text())


def test_a_prediction_brings_the_slide_to_the_target(tmp_path: Path) -> None:
    """Target and slide alike: the same answer; another target: another one, and the step's seconds are told."""
    answers = {}
    plain = lively_bundle(tmp_path / "plain")
    with Slide(write_slide(tmp_path, PhantomSlide("phantom", LESION, 5, (2048, 1536)))) as slide:
        own = measure_stain(slide, find_tissue_grid(slide, plain.card.plan, plain.card.tissue).grid)
        paler = replace(own, density=tuple(d / 2 for d in own.density))
        targets = {"none": None, "own": StainTarget("density_gain", own), "pale": StainTarget("density_gain", paler)}
        for name, target in targets.items():
            bundle = lively_bundle(tmp_path / name, stain=target)
            last = list(predict(slide, bundle, device=torch.device("cpu")))[-1]
            assert isinstance(last, Finished)
            answers[name] = last.result
    logits = {name: list(a.student.logits.values()) for name, a in answers.items()}
    assert logits["none"] == logits["own"] != logits["pale"]
    assert "stain" in answers["pale"].student.seconds and "stain" not in answers["none"].student.seconds
