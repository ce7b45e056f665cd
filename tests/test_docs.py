"""The docs site: every link and picture resolves, every page is in the navigation, generated tables are complete."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TOP_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CODE_OF_CONDUCT.md", "SECURITY.md")
PAGES = [*(ROOT / name for name in TOP_PAGES), *sorted(DOCS.rglob("*.md"))]
PROJECT = "https://github.com/napari-lrmil/napari-lrmil"
# Addresses of files of the repository; a package page has no other files.
ADDRESS = re.compile(
    r"https://(?:github\.com/napari-lrmil/napari-lrmil/blob|raw\.githubusercontent\.com/napari-lrmil/napari-lrmil)"
    r"/main/(?P<target>[^)\s#]+)"
)
CALL = re.compile(r"napari-lrmil (?P<command>[a-z-]+)(?P<words>[^`#|\n]*)")
LABEL = re.compile(r"(?<!\*)\*(?P<label>[^*\n]+(?:\n[^*\n]+)?)\*(?!\*)")  # in italics
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)(?P<target>[^)#\s]+)(?:#[^)\s]*)?\)")


def cli_commands() -> dict[str, Any]:
    """Return the commands of the program by name."""
    from typer.main import get_command

    from napari_lrmil.cli import app

    return dict(get_command(app).commands)  # type: ignore[attr-defined]


def options_of(command: Any) -> set[str]:
    """Return the options of a command, those that switch something off included."""
    return {name for p in command.params if p.param_type_name == "option" for name in [*p.opts, *p.secondary_opts]}


def nav_pages(entries: list[object]) -> Iterator[str]:
    """Yield the pages of a navigation, whatever its depth."""
    for entry in entries:
        target = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(target, list):
            yield from nav_pages(target)
        else:
            yield str(target)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_pictures_resolve(page: Path) -> None:
    """The site's builder checks links between pages; pictures and links from outside `docs/` it does not see."""
    targets = [match["target"] for match in LINK.finditer(page.read_text(encoding="utf-8"))]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_readme_stands_on_a_package_page() -> None:
    """Links and pictures of the README have an address, because a package page has no other files."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert LINK.findall(text) == []
    used = set(re.findall(r"\]\[([^]\n]+)\]", " ".join(text.split("\n"))))
    assert used == set(re.findall(r"^\[([^]]+)\]: https://", text, flags=re.MULTILINE))
    targets = ADDRESS.findall(text)
    assert len(targets) > 15 and [target for target in targets if not (ROOT / target).is_file()] == []


def test_the_project_has_one_address() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["urls"]["Homepage"] == citation["repository-code"] == PROJECT
    assert citation["version"] == version("napari-lrmil") and citation["license"] == project["license"]
    for target in ADDRESS.findall(" ".join(project["urls"].values())):
        assert (ROOT / target).is_file()


def test_workflows_name_commands_and_files_that_exist() -> None:
    """What a workflow runs is looked at by nobody before it fails on another machine."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
        text = "\n".join(step.get("run", "") for job in jobs.values() for step in job.get("steps", ()))
        called = {word for line in re.findall(r"^make (.*)$", text, flags=re.MULTILINE) for word in line.split()}
        assert called <= targets
        assert all((ROOT / name).is_file() for name in re.findall(r"scripts/\w+\.sh", text))
        for call in CALL.finditer(text):
            named = {word for word in call["words"].split() if word.startswith("--")}
            assert named <= options_of(cli_commands()[call["command"]]), call[0]


def test_the_commands_for_users_of_a_wheel_need_no_make_and_no_repository() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## Install with pip")[1].split("\n## ")[0]
    lines = [
        line.split("#")[0].split()
        for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
        for line in block.splitlines()
    ]
    assert [line[0] for line in lines] == ["pip", *["napari-lrmil"] * 6]
    assert {line[1] for line in lines[1:]} == {"demo", "phantom", "predict", "train", "view", "doctor"}
    assert "benchmarks/" not in section and "make " not in section


def test_every_page_is_in_the_navigation_once() -> None:
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = sorted(nav_pages(site["nav"]))
    assert listed == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_labels_in_the_tutorials_are_those_of_the_window() -> None:
    sources = [ROOT / "napari.yaml", *sorted((ROOT / "napari_lrmil").rglob("*.py"))]
    text = " ".join("\n".join(path.read_text(encoding="utf-8") for path in sources).split())
    for page in sorted((DOCS / "tutorials").glob("*.md")):
        labels = {" ".join(match["label"].split()) for match in LABEL.finditer(page.read_text(encoding="utf-8"))}
        assert [label for label in sorted(labels) if " > " not in label and label not in text] == [], page.name


def test_the_examples_of_the_python_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but training, which takes minutes."""
    from napari_lrmil import open_slide, predict
    from napari_lrmil.core.phantom import PhantomSlide, write_slide
    from napari_lrmil.core.results.writer import write_prediction

    path = write_slide(tmp_path, PhantomSlide("slide", "lesion", 5, (1536, 1280), 0.5))
    with open_slide(path) as slide:
        write_prediction(tmp_path / "results", slide, predict(slide))
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")  # another test may have loaded a backend that needs a screen
    examples = PYTHON.findall((DOCS / "how-to" / "python.md").read_text(encoding="utf-8"))
    values: dict[str, Any] = {}
    for example in (example for example in examples if "train(" not in example):
        exec(example, values)
    assert len(examples) == 7 and (tmp_path / "attention.png").stat().st_size
    assert values["stored"].predicted == values["prediction"].student.predicted == "lesion"
    assert len(values["bag"].features) == len(values["student"].attention)


def test_options_in_the_pages_exist() -> None:
    commands = {name: options_of(command) for name, command in cli_commands().items()}
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for call in CALL.finditer(text):
            command = call["command"]
            for words in call["words"].split(" -- "):  # what follows is a command with options of its own
                named = {word for word in words.split() if word.startswith("--")}
                assert named <= commands.get(command, set()), f"{page.name}: {call[0]}"
                command = call["words"].partition(" -- ")[2].split(" ")[0]


def test_the_tables_in_the_pages_are_those_of_the_program(tmp_path: Path) -> None:
    """They stand in the pages themselves, so that the pages can be read without a build; an option changes them."""
    shutil.copytree(DOCS, tmp_path / "docs", ignore=shutil.ignore_patterns("images"))
    call = [sys.executable, ROOT / "scripts" / "reference_pages.py", tmp_path / "docs"]
    subprocess.run(call, check=True, timeout=240)
    pages = [page.relative_to(DOCS) for page in sorted(DOCS.rglob("*.md"))]
    old = [page.as_posix() for page in pages if (DOCS / page).read_bytes() != (tmp_path / "docs" / page).read_bytes()]
    assert not old, "call `python scripts/reference_pages.py`, which writes the tables of these pages anew"


def test_the_pages_need_no_other_file_to_be_read() -> None:
    assert [page.name for page in PAGES if "--8<--" in page.read_text(encoding="utf-8")] == []


def test_command_reference_has_every_command_and_option() -> None:
    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    for name, command in cli_commands().items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert [option for option in options_of(command) if option not in section] == [], name


def test_configuration_reference_has_every_key_with_its_default() -> None:
    page = (DOCS / "reference" / "configuration.md").read_text(encoding="utf-8")
    rows = {row.split("`")[1]: row for row in page.splitlines() if row.startswith("| `")}
    assert rows["stage1.lambda_attn"].startswith("| `stage1.lambda_attn` | `1.0` |")
    assert rows["stage1.lambda_attn"].endswith("| number, ≥ 0, ≤ 1000 |")
    assert rows["student_input_px"].endswith("| whole number or none, ≥ 32, ≤ 8192 |")
    from lrmil_training.config import TrainConfig

    for name, value in TrainConfig().model_dump().items():
        keys = [f"{name}.{key}" for key in value] if isinstance(value, dict) else [name]
        assert set(keys) <= set(rows), name


def test_result_files_page_has_every_key_of_the_schemas() -> None:
    from napari_lrmil.core.results.schema import AgreementFile, CohortFile, PredictionFile, TeacherResult, WorkerSummary

    page = (DOCS / "reference" / "files" / "results.md").read_text(encoding="utf-8")
    sections = {part.split("\n")[0]: part for part in page.split("\n## ")}
    models = {
        PredictionFile: "prediction.json",
        TeacherResult: "prediction.json",
        AgreementFile: "agreement.json",
        CohortFile: "cohort.json",
        WorkerSummary: "cohort.json",
    }
    for model, name in models.items():
        assert [key for key in model.model_fields if f"`{key}`" not in sections[name]] == [], name


def test_the_cluster_page_has_the_options_of_jobs_with_their_defaults() -> None:
    from napari_lrmil.core.cohort.slurm import SlurmOptions

    page = (DOCS / "how-to" / "cluster.md").read_text(encoding="utf-8")
    section = page.split("\n## SLURM\n")[1].split("\n## ")[0]
    rows = {cells[0]: cells[1] for cells in re.findall(r"^\| `(\w+)` \|([^|]*)\|", section, flags=re.MULTILINE)}
    defaults = SlurmOptions().model_dump(mode="json")
    assert list(rows) == list(defaults)
    for key, cell in rows.items():
        value = None if key == "python" else defaults[key]  # it depends on the machine
        assert yaml.safe_load(cell.strip(" `")) in (value or None, value), key
    example = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)[0])
    assert SlurmOptions(**example)
