"""What installing gives: light imports, and one manifest that npe2 finds in the wheel and in an editable install."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import distribution, packages_distributions
from importlib.util import find_spec
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[1]
MANIFEST = ROOT / "napari.yaml"
SOURCES = {"napari_lrmil": ROOT / "napari_lrmil", "lrmil_training": ROOT / "src_training" / "lrmil_training"}
WINDOW = ("napari", "qtpy", "magicgui", "superqt", "PySide6", "PySide2", "PyQt6", "PyQt5")

DISCOVER = """
    import json, sys
    from importlib.util import find_spec
    import npe2
    manager = npe2.PluginManager()
    manager.discover()
    manifest = manager.get_manifest("napari-lrmil")
    print(json.dumps({
        "package": find_spec("napari_lrmil").origin,
        "version": manifest.package_version,
        "commands": {command.id: command.python_name for command in manifest.contributions.commands},
        "widgets": [widget.display_name for widget in manifest.contributions.widgets],
        "samples": [sample.key for sample in manifest.contributions.sample_data],
    }))
"""


def run(code: str, cwd: Path, *options: str, **env: str) -> str:
    """Return what a fresh interpreter prints for `code`, away from the checkout."""
    call = [sys.executable, *options, "-c", dedent(code)]
    done = subprocess.run(call, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_after(code: str, cwd: Path) -> set[str]:
    """Return the top-level modules that `code` leaves loaded."""
    tail = "\nimport json, sys\nprint(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    return set(json.loads(run(dedent(code) + tail, cwd).splitlines()[-1]))


def imported_by(source: Path) -> set[str]:
    """Return the top-level modules that a file imports, inside functions too."""
    nodes = list(ast.walk(ast.parse(source.read_text(encoding="utf-8"))))
    names = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name.partition(".")[0] for name in names}


# ---------------------------------------------------------------- light imports


def test_importing_the_package_loads_neither_torch_nor_qt(tmp_path: Path) -> None:
    assert not loaded_after("import napari_lrmil", tmp_path) & {"torch", *WINDOW}


@pytest.mark.parametrize("words", [["--help"], ["predict", "--help"], ["train", "--help"]])
def test_help_loads_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    code = f"""
        import sys
        from napari_lrmil.cli import main
        sys.argv = ["napari-lrmil", *{words!r}]
        try:
            main()
        except SystemExit as end:
            assert not end.code, end.code
    """
    assert not loaded_after(code, tmp_path) & {"torch", "lightning", "sklearn", "transformers", *WINDOW}


def test_every_dependency_that_is_declared_is_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["gui"], *extras["train"]]
    names = {re.split(r"[^A-Za-z0-9-]", requirement)[0].lower() for requirement in declared}
    owners = packages_distributions()
    sources = (path for folder in SOURCES.values() for path in folder.rglob("*.py"))
    modules = {module for source in sources for module in imported_by(source)}
    used = {owner.lower().replace("_", "-") for module in modules for owner in owners.get(module, [])}
    assert names - used == {"openslide-bin", "pyside6-essentials"}, "libraries that openslide-python and qtpy load"


# ---------------------------------------------------------------- the installed plugin


def test_installed_manifest_is_the_one_of_the_checkout() -> None:
    """An editable install copies the manifest: an edit of it needs a new `pip install -e .`."""
    spec = find_spec("napari_lrmil_manifest")
    assert spec is not None
    (folder,) = set(spec.submodule_search_locations or ())
    assert Path(folder, "napari.yaml").read_text(encoding="utf-8") == MANIFEST.read_text(encoding="utf-8")


def test_npe2_lists_the_installed_plugin(tmp_path: Path) -> None:
    found = json.loads(run(DISCOVER, tmp_path))
    assert found["widgets"] == ["Analyse (LRMIL)", "Compare (LRMIL)", "Train (LRMIL)", "Worklist (LRMIL)"]
    assert found["samples"] == ["phantom"]


def test_what_the_manifest_names_is_there() -> None:
    from npe2 import PluginManifest
    from npe2.manifest.utils import import_python_name

    manifest = PluginManifest.from_file(MANIFEST)
    assert manifest.contributions.commands
    for command in manifest.contributions.commands:
        assert command.python_name is not None
        assert callable(import_python_name(command.python_name))


def test_the_manifest_lists_the_endings_that_the_command_line_and_the_train_dock_look_for() -> None:
    from npe2 import PluginManifest

    from napari_lrmil.core.slides.slide_files import SLIDE_ENDINGS

    (reader,) = PluginManifest.from_file(MANIFEST).contributions.readers or ()
    assert reader.filename_patterns == [f"*{ending}" for ending in SLIDE_ENDINGS]


# ---------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the unpacked wheel, as a user's site-packages would have it."""
    folder = tmp_path_factory.mktemp("wheel")
    call = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (archive,) = folder.glob("*.whl")
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder / "unpacked")
    return folder / "unpacked"


def test_wheel_holds_code_data_and_manifest_and_nothing_else(wheel: Path) -> None:
    """Bundles and presets are data beside the code: a wheel without them has no demo."""
    wanted = {"napari_lrmil_manifest/napari.yaml"}
    for package, folder in SOURCES.items():
        files = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in {".pyc", ".partial"})
        wanted |= {f"{package}/{path.relative_to(folder).as_posix()}" for path in files}
    held = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    assert {name for name in held if ".dist-info/" not in name} == wanted


def test_npe2_finds_the_plugin_in_the_wheel(wheel: Path) -> None:
    """Without `site` no .pth file is read, so the editable install beside it cannot help."""
    libraries = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    path = os.pathsep.join([str(wheel), *sorted(libraries)])
    found = json.loads(run(DISCOVER, wheel, "-S", PYTHONPATH=path))
    assert Path(found["package"]).is_relative_to(wheel)
    assert found["commands"]["napari-lrmil.get_reader"] == "napari_lrmil.plugin.viewer.opening.reader:get_reader"
    assert found["widgets"] == ["Analyse (LRMIL)", "Compare (LRMIL)", "Train (LRMIL)", "Worklist (LRMIL)"]


def test_wheel_and_editable_install_name_the_same_entry_points(wheel: Path) -> None:
    (built,) = wheel.glob("*.dist-info/entry_points.txt")
    installed = distribution("napari-lrmil").read_text("entry_points.txt")
    assert installed is not None
    assert built.read_text(encoding="utf-8").split() == installed.split()


# ---------------------------------------------------------------- the repository


def test_no_file_names_the_machine_it_was_made_on() -> None:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout: which files belong to the project is not known")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    places = re.compile(r"(?:(?<![\w./~:}\])-])|file://)/(?:home|root|work|tmp|opt|mnt|Users)/\w|[A-Z]:\\\\?Users\\")
    named = []
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and b"\0" not in (content := (ROOT / name).read_bytes()):
            lines = enumerate(content.decode("utf-8", errors="replace").splitlines(), start=1)
            named += [f"{name}:{number}: {line.strip()[:80]}" for number, line in lines if places.search(line)]
    assert not named, "\n".join(named)
