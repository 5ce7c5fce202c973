"""Folders of adapters."""

import shutil
from pathlib import Path

import pytest

from deltamem_agents.adapter.files import CONFIG_FILE, PUBLISHED_WEIGHTS_FILE
from tests.adapter.saved import PUBLISHED, adapter_of


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    adapter_of().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    folder = tmp_path / "published"
    folder.mkdir()
    for name in (CONFIG_FILE, PUBLISHED_WEIGHTS_FILE):
        shutil.copyfile(PUBLISHED / name, folder / name)
    return folder
