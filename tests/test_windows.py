"""What differs on Windows: names of files, quotes of its shell, code pages of its output, and tables written there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lrmil_training.config import load_config
from lrmil_training.data.cohort_cells import find_slide
from lrmil_training.data.cohort_file import read_table
from napari_lrmil.core.encoders.hub_name import HubName
from napari_lrmil.core.errors import EncoderError
from napari_lrmil.core.results import equivalent_command
from napari_lrmil.core.slides import slide_names

PRINTED = "import sys; from napari_lrmil import cli; cli._escape_missing_characters(); print('ρ → µ')"


def test_a_name_has_no_character_that_windows_forbids(monkeypatch: pytest.MonkeyPatch) -> None:
    """A colon would write into a hidden stream of another file, without an error."""
    assert slide_names.safe_name("Dr: A?") == "Dr: A?", "names of results stay as they are elsewhere"
    monkeypatch.setattr(slide_names, "IS_WINDOWS", True)
    assert slide_names.safe_name("Dr: A?") == "Dr%3A A%3F"
    assert slide_names.safe_name("nul.svs") == "nul.svs_slide"


def test_the_command_line_is_quoted_for_the_shell_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equivalent_command, "IS_WINDOWS", True)
    command = equivalent_command.predict_command(Path("my slide.svs"), bundle="demo", out=Path("o"))
    assert command.startswith('napari-lrmil predict "my slide.svs" --bundle demo') and "'" not in command


@pytest.mark.parametrize(("encoding", "printed"), [("cp1252", "\\u03c1 \\u2192 µ"), ("utf-8", "ρ → µ")])
def test_output_in_a_code_page_escapes_what_it_lacks(encoding: str, printed: str, tmp_path: Path) -> None:
    """Python writes to a file or pipe in the code page, and stops at a character that this lacks."""
    call, env = [sys.executable, "-c", PRINTED], {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(call, cwd=tmp_path, env=env, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode(encoding).strip() == printed


@pytest.mark.parametrize("name", ["hf:C:\\models\\a", "hf:C:/a", "hf:/C:\\a/b", "hf:./a", "hf:owner/na me", "hf:a/b/c"])
def test_a_path_is_no_name_of_the_hub(name: str) -> None:
    with pytest.raises(EncoderError, match="a file or folder is given without hf:"):
        HubName.parse(name)


def test_a_path_with_a_drive_is_a_setting(tmp_path: Path) -> None:
    """Between double quotes a backslash begins an escape in YAML, so such a path is refused and not misread."""
    assert load_config(None, ["features=C:\\new\\slides"]).features == Path("C:\\new\\slides")
    file = tmp_path / "config.yaml"
    file.write_bytes(b"features: D:\\tables\\new\r\nseed: 3\r\n")
    assert load_config(file).features == Path("D:\\tables\\new") and load_config(file).seed == 3
    file.write_bytes(b'features: "D:\\tables\\new"\r\n')
    with pytest.raises(Exception, match=r"features|YAML"):
        load_config(file)


def test_a_table_written_on_windows_finds_its_slides(tmp_path: Path) -> None:
    """With a byte order mark, semicolons, backslashes and line ends of Windows."""
    (tmp_path / "slides").mkdir()
    for name in ("ä.svs", "b.svs"):
        (tmp_path / "slides" / name).touch()
    table = tmp_path / "cohort.csv"
    rows = ["slide;patient;label", "slides\\ä.svs;1;no", "slides\\b.svs;2;yes", ""]
    for encoding in ("utf-8-sig", "cp1252", "utf-16"):
        table.write_bytes("\r\n".join(rows).encode(encoding))
        slides = [find_slide(table, row, []) for row in read_table(table).rows]
        assert [slide.name for slide in slides if slide.is_file()] == ["ä.svs", "b.svs"], encoding
