"""What every test shares: nothing is fetched, one torch thread, the development data where it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # or each look-up waits for a network that is not there
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes share the cores

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real development data, which is no part of the repository."""
    if not SHARED.is_dir():
        pytest.skip("the development data (shared/data beside the repository) is not on this machine")
    return SHARED
