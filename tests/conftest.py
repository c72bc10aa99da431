"""Fixtures that every room shares: where real footage is, and what was skipped for want of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """The folder of real footage named by QUOVADIS_TEST_CLIPS; the test is skipped without it."""
    folder = os.environ.get("QUOVADIS_TEST_CLIPS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("QUOVADIS_TEST_CLIPS names no folder of real footage")
    return Path(folder)
