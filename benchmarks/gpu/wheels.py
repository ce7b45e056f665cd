"""Wheels for a machine without network: what engine and training import and the machine lacks.

Versions are those of ``constraints.txt``. Only the standard library is imported here.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAX_MB = 50.0
PYTHON = "3.12"
# Pip matches the number in a platform name exactly, so each one that the wheels below carry is named.
PLATFORMS = tuple(f"manylinux{version}_x86_64" for version in ("_2_28", "_2_24", "_2_17", "2014", "1"))
# Distributions that the machine has already, from those that engine, training and the tests on a GPU import.
PROVIDED = frozenset(
    {
        "cloudpickle",
        "filelock",
        "h5py",
        "huggingface-hub",
        "jinja2",
        "lightning",
        "matplotlib",
        "numpy",
        "packaging",
        "pillow",
        "psutil",
        "pytest",
        "pytest-timeout",
        "pyyaml",
        "rich",
        "safetensors",
        "scikit-image",
        "scikit-learn",
        "scipy",
        "tifffile",
        "torch",
        "transformers",
        "typer",
    }
)
MISSING = (
    "annotated-types",
    "imagecodecs",
    "openslide-bin",
    "openslide-python",
    "platformdirs",
    "pydantic",
    "pydantic-core",
    "shapely",
    "typing-extensions",  # pydantic-core needs a newer one than other packages bring
    "typing-inspection",
)


def pinned(names: tuple[str, ...] = MISSING) -> list[str]:
    """Return ``name==version`` of each name, as in ``constraints.txt``."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    versions = dict(line.split("==", 1) for line in lines if "==" in line and not line.startswith("#"))
    return [f"{name}=={versions[name]}" for name in names]


def collect(folder: Path) -> float:
    """Download the wheels into a folder, in place of those of earlier calls, and return their size in MB.

    Raises
    ------
    SystemExit
        If a wheel does not exist or the size exceeds `MAX_MB`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in folder.glob("*.whl"):  # two versions of one package would stop the installation
        wheel.unlink()
    target = ["--python-version", PYTHON, "--implementation", "cp", "--only-binary=:all:", "--no-deps"]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *target, *platforms, "-d", folder, *pinned()]
    if subprocess.run([str(word) for word in command], check=False).returncode:
        raise SystemExit("pip could not download every wheel, see above; add the platform that its name carries")
    size = sum(wheel.stat().st_size for wheel in folder.glob("*.whl")) / 1e6
    if size > MAX_MB:
        raise SystemExit(f"the wheels have {size:.1f} MB, more than {MAX_MB:.0f} MB; leave one out of MISSING")
    return size


def install(folder: Path, target: Path) -> None:
    """Install the wheels of a folder into another one, without network.

    Raises
    ------
    SystemExit
        If there are no wheels, or pip refuses one.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise SystemExit(f"{folder} holds no wheels; make them with: python benchmarks/gpu/run.py collect --out FOLDER")
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", target, *wheels]
    if subprocess.run([str(word) for word in command], check=False).returncode:
        raise SystemExit(f"pip could not install the wheels of {folder} for Python {sys.version.split()[0]}")
