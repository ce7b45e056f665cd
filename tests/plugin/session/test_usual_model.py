"""The model of a slide before the user chooses one: none for tissue, and what was chosen for the folder before."""

from __future__ import annotations

from pathlib import Path

from napari_lrmil.core.models.bundle import Bundle
from napari_lrmil.core.user_settings import SettingsStore
from napari_lrmil.plugin.session.open_slides import SlideChoice
from napari_lrmil.plugin.session.session import Session

TISSUE = SlideChoice("tissue", Path("/clinic/a.svs"), 0.5)
NEIGHBOUR = SlideChoice("neighbour", Path("/clinic/b.svs"), 0.5)
ELSEWHERE = SlideChoice("elsewhere", Path("/archive/c.svs"), 0.5)
PHANTOM = SlideChoice("phantom", Path("/phantoms/d.svs"), 0.5, is_phantom=True)


def _new_session(tmp_path: Path) -> Session:
    session = Session(settings_store=SettingsStore(tmp_path / "settings"))
    session.set_slides([TISSUE, NEIGHBOUR, ELSEWHERE, PHANTOM])
    return session


def test_tissue_gets_no_model_and_a_phantom_the_one_of_phantoms(tmp_path: Path) -> None:
    session = _new_session(tmp_path)
    session.choose_slide(PHANTOM)
    assert session.bundle_name == "demo" and session.bundle is not None
    session.choose_slide(TISSUE)
    assert session.bundle is None and session.run_blocked_by.startswith("No model is chosen.")


def test_a_choice_holds_for_the_folder_and_outlasts_the_session(tmp_path: Path, bundle: Bundle) -> None:
    session = _new_session(tmp_path)
    session.choose_slide(TISSUE)
    session.choose_bundle(bundle.path)
    session.choose_slide(ELSEWHERE)
    assert session.bundle is None
    session.choose_slide(NEIGHBOUR)
    assert session.bundle is not None and session.bundle_name == str(bundle.path)
    later = _new_session(tmp_path)
    later.choose_slide(NEIGHBOUR)
    assert later.bundle_name == str(bundle.path)
    later.choose_bundle(None)
    assert SettingsStore(tmp_path / "settings").remembered_model(NEIGHBOUR.path.parent) == ""


def test_a_model_named_before_a_slide_is_open_holds_for_all_slides(tmp_path: Path, bundle: Bundle) -> None:
    session = Session(settings_store=SettingsStore(tmp_path / "settings"))
    session.choose_bundle(bundle.path)
    for slide in (TISSUE, ELSEWHERE, PHANTOM):
        session.set_slides([slide])
        assert session.bundle_name == str(bundle.path)
    assert SettingsStore(tmp_path / "settings").remembered_model(TISSUE.path.parent) is None


def test_a_remembered_model_that_is_gone_is_named(tmp_path: Path) -> None:
    SettingsStore(tmp_path / "settings").remember_model(TISSUE.path.parent, str(tmp_path / "moved"))
    session = _new_session(tmp_path)
    session.choose_slide(TISSUE)
    assert session.bundle is None and "moved" in session.run_blocked_by


def test_settings_that_cannot_be_written_do_not_take_the_model_away(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "settings").write_text("a file where the folder should be")
    session, failures = _new_session(tmp_path), list[str]()
    session.failed.connect(failures.append)
    session.choose_slide(TISSUE)
    session.choose_bundle(bundle.path)
    assert session.bundle is not None and len(failures) == 1
    session.choose_slide(PHANTOM)
    session.choose_slide(NEIGHBOUR)
    assert session.bundle_name == str(bundle.path), "it holds for this session"
