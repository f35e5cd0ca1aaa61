"""One tiny checkpoint, loaded anew for each test that changes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llava_train.config.schema import ModelConfig
from llava_train.model.loading.load_model import LoadedModel, load_model
from llava_train.model.loading.tiny_model import make_tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("model") / "tiny", tied=False)


@pytest.fixture
def loaded(tiny_folder, tmp_path) -> LoadedModel:
    return load_model(ModelConfig(str(tiny_folder), "", "", "auto"), "fp32", tmp_path)
