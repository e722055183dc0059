"""Fixtures that several test files share. Everything is made on the spot; nothing is fetched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Set before numpy, torch or numba start their pools: tests share two cores.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images with human ground truth beside the checkout; tests that need them skip where they are missing."""
    path = REPOSITORY.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no ../shared/data beside the checkout (BSDS500 and others)")
    return path


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The folder of photographs inside the scikit-image package."""
    import skimage

    return Path(skimage.__file__).parent / "data"
