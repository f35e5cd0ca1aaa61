"""The device, which only the processes of `test_fake_gpu.py` ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_gpu import FakeGpu


@pytest.fixture(scope="session")
def gpu() -> Iterator[FakeGpu]:
    """A card that has varlen attention."""
    from llava_train.model.forward import packed_forward

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_forward, "choose_kernel", lambda *_: "varlen")
        yield FakeGpu()
