"""The window and the demo call nobody, and the demo's picture leaves no settings behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from napari_lrmil.core.phantom import LESION, PhantomSlide, write_slide
from support.watched_child import COMMAND, watch_child

# The window closes as soon as its event loop has begun. Sockets of other machines are refused at once.
VIEW = (
    """
import ipaddress
def refuse(name, values):
    if name == "socket.connect" and not isinstance(values[1], (str, bytes)):
        assert ipaddress.ip_address(values[1][0]).is_loopback, values
sys.addaudithook(refuse)
import napari
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication
def run(**_):
    for _ in range(20):
        QApplication.processEvents()
    napari.current_viewer().close()
napari.run = run
"""
    + COMMAND
)

pytestmark = pytest.mark.slow


def test_the_window_opens_a_slide_without_a_network_call(tmp_path: Path) -> None:
    slide = write_slide(tmp_path, PhantomSlide("slide", LESION, 3, (1280, 960)))
    events = watch_child(VIEW, tmp_path / "home", "view", slide)
    # napari keeps the window's settings; that is what a user wants.
    assert [event for event in events if not event.startswith(".config")] == []


def test_the_demo_leaves_the_home_as_it_was(tmp_path: Path) -> None:
    slide = write_slide(tmp_path, PhantomSlide("slide", LESION, 3, (1280, 960)))
    call = ("demo", "--headless", "--slide", slide, "--out", tmp_path / "demo")
    assert watch_child(COMMAND, tmp_path / "home", *call) == []
    assert (tmp_path / "demo" / "demo.png").is_file()


def test_a_demo_that_cannot_write_says_so_before_it_draws(tmp_path: Path) -> None:
    if os.name == "nt" or os.geteuid() == 0:  # neither root nor Windows keeps to the mode of a folder
        place = tmp_path / "file"
        place.write_text("no folder")
    else:
        place = tmp_path / "folder"
        place.mkdir(mode=0o555)
    with pytest.raises(AssertionError, match="cannot be written"):
        watch_child(COMMAND, tmp_path / "home", "demo", "--headless", "--out", place / "demo")
