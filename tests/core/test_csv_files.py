"""CSV files: a spreadsheet runs no cell, and every cell is read as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from napari_lrmil.core.csv_files import protect_cell, read_csv, restore_cell, write_csv

CELLS = ["=1+2", "+a", "-a", "@SUM(1)", "\t=1", "'=1", "''@x", "'quoted'", "a=b", "", "'", "-", "plain", "-1e", "é\nü"]


@pytest.mark.parametrize("cell", [*CELLS, "-1", "+2.5", "1e-3"])
def test_cells_are_read_as_they_were(cell: str) -> None:
    assert restore_cell(protect_cell(cell)) == cell


@pytest.mark.parametrize("cell", ["=1", "+a", "-a", "@a", "\ta", "\ra", "-1+cmd"])
def test_formulas_are_text(cell: str) -> None:
    assert protect_cell(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["-1", "+1.5", "-2e-05", "0.5", "1-2", "a"])
def test_numbers_and_plain_text_stay(cell: str) -> None:
    assert protect_cell(cell) == cell


def test_a_table_is_read_as_it_was(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", [["a", "b"], *([cell, 1.5] for cell in CELLS)])
    assert read_csv(tmp_path / "t.csv") == [["a", "b"], *([cell, "1.5"] for cell in CELLS)]


def test_ragged_bytes_do_not_stop_a_table(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", [["a\udcff"]])
    assert read_csv(tmp_path / "t.csv") == [["a\\udcff"]]
