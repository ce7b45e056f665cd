"""Tests of the probing process: crashes and hangs of the slide library are sentences, plain slides need no probe."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from napari_lrmil.core.errors import SlideError
from napari_lrmil.core.slides import openslide_handle, probe
from napari_lrmil.core.slides.probe import Probe, ProbeUnavailableError, exit_text, require_opens
from support.plain_tiffs import write_slide

# A process whose stand-in for the slide library does what the file's name says.
CHILD = """
import os, signal, sys
from napari_lrmil.core.slides import probe_child
def stand_in(path):
    name = os.path.basename(path)
    if name.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, name))
    if name == "hang":
        sys.stdin.read()
probe_child.probe = stand_in
probe_child.serve(20)
"""
COMMAND = (sys.executable, "-c", CHILD)
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.fixture
def own_probe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Probe]:
    """Replace the probing process of this process by one with the stand-in and an empty memory."""
    own = Probe(COMMAND)
    monkeypatch.setattr(probe, "_probes", {os.getpid(): own})
    monkeypatch.setattr(probe, "_opened_keys", set())
    monkeypatch.setenv("NAPARI_LRMIL_CACHE", str(tmp_path / "cache"))
    yield own
    own.close()


@posix
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGFPE", "SIGABRT"])
def test_a_crash_is_a_sentence_with_the_signal_and_the_next_file_is_probed(own_probe: Probe, name: str) -> None:
    with pytest.raises(SlideError, match=rf"crashed the slide library \({name}\).*copy it again"):
        own_probe.check(Path(name))
    own_probe.check(Path("good"))
    own_probe.check(Path("good too"))
    assert own_probe.n_started == 2


@posix
def test_a_process_that_was_killed_from_outside_is_not_blamed_on_the_file(own_probe: Probe) -> None:
    with pytest.raises(SlideError, match=r"ended from outside \(SIGKILL\).*memory"):
        own_probe.check(Path("SIGKILL"))


def test_an_exit_code_is_stated_as_windows_names_it() -> None:
    assert "crashed the slide library (code 0xc0000005)" in exit_text(0xC0000005)


def test_a_hang_is_a_sentence() -> None:
    own = Probe(COMMAND, limit_s=3)
    try:
        with pytest.raises(SlideError, match="did not open this file within 3 s"):
            own.check(Path("hang"))
    finally:
        own.close()


def test_a_process_that_died_while_idle_is_replaced(own_probe: Probe) -> None:
    own_probe.check(Path("good"))
    assert own_probe._process is not None
    own_probe._process.kill()
    own_probe._process.wait()
    own_probe.check(Path("good"))
    assert own_probe.n_started == 2


def test_what_has_opened_is_not_probed_again_until_it_changes(own_probe: Probe, tmp_path: Path) -> None:
    file = tmp_path / "slides" / "a.mrxs"
    file.parent.mkdir()
    file.write_bytes(b"content")
    require_opens(file)
    own_probe.close()
    probe._opened_keys.clear()  # as in the next process
    require_opens(file)
    assert own_probe.n_started == 1
    file.write_bytes(b"other content")
    require_opens(file)
    assert own_probe.n_started == 2


def test_a_process_that_does_not_start_is_no_verdict(tmp_path: Path) -> None:
    for command in ((str(tmp_path / "absent"),), (sys.executable, "-c", "")):
        with pytest.raises(ProbeUnavailableError):
            Probe(command).check(Path("good"))


def test_a_plain_slide_is_not_probed_and_another_is(own_probe: Probe, tmp_path: Path) -> None:
    openslide_handle.open_with_openslide(write_slide(tmp_path / "a.svs")).close()
    assert own_probe.n_started == 0
    openslide_handle.open_with_openslide(write_slide(tmp_path / "b.tif", description="<OME/>")).close()
    assert own_probe.n_started == 1


def test_the_real_process_opens_a_slide(tmp_path: Path) -> None:
    own = Probe()
    try:
        own.check(write_slide(tmp_path / "a.svs"))
        own.check(Path(__file__))  # no slide: OpenSlide's own error is no crash
        assert own.n_started == 1
    finally:
        own.close()


def test_the_probing_process_ends_with_its_parent_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "slide.mrxs").write_bytes(b"not a slide")
    program = (
        "import sys; from pathlib import Path; from napari_lrmil.core.slides.probe import require_opens, _probes; "
        "require_opens(Path(sys.argv[1])); print(sum(probe.n_started for probe in _probes.values()))"
    )
    command = [sys.executable, "-W", "always", "-c", program, str(tmp_path / "slide.mrxs")]
    environment = {**os.environ, "NAPARI_LRMIL_CACHE": str(tmp_path / "cache")}
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert ended.stdout == "1\n"
    assert "still running" not in ended.stderr
