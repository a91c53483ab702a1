"""Settings of all tests."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests share the cores between processes, not threads

import pytest
from hypothesis import settings

settings.register_profile("selfloop", deadline=None)  # a busy machine is no failure
settings.load_profile("selfloop")


@pytest.fixture(scope="session")
def presets(tmp_path_factory):
    """Files for the experiments whose data are not embedded, and what makes each of them fit: name -> overrides."""
    from presets import SMALLER, stand_ins

    folder = tmp_path_factory.mktemp("presets")
    os.environ |= stand_ins(folder) | {"SELFLOOP_CACHE": str(folder / "cache")}
    return SMALLER
