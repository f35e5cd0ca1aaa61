"""A DeepSpeed that has no longer what is read of it ends the start with the field's name, its version and the range."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.specifiers import SpecifierSet

from llava_train.ranks.deepspeed_fields import TESTED, internal
from llava_train.shared.errors import RunError
from llava_train.train.engine.zero_slices import frozen_slices, refresh_weights, trained_slices, whole_shape

ROOT = Path(__file__).parents[2]


def stand_in(level: int) -> tuple[SimpleNamespace, torch.nn.Parameter]:
    """DeepSpeed's optimiser and one parameter with all that is read of them, on one rank."""
    parameter, flat = torch.nn.Parameter(torch.zeros(3)), torch.zeros(3)
    address = SimpleNamespace(start=0, numel=3)
    if level == 3:
        parameter.ds_tensor, parameter.ds_numel, parameter.ds_shape = flat, 3, (3,)
        parameter.partition_numel = lambda: 3
        groups = {f"{kind}_partitioned_groups_flat": [flat] for kind in ("fp16", "fp32")}
        numbers = {"grad_position": {0: (0, 0, 3)}, "get_param_id": lambda _: 0}
        return SimpleNamespace(
            **groups, **numbers, fp16_partitioned_groups=[[parameter]], unflatten=lambda flat, _: [flat]
        ), parameter
    parameter._hp_mapping = SimpleNamespace(
        param_group_index=0, lp_fragment_address=address, hp_fragment_address=address
    )
    return SimpleNamespace(single_partition_of_fp32_groups=[flat], update_lp_params=lambda: None), parameter


def read_all(optimizer, parameter, level: int) -> None:
    [part] = trained_slices([("a", parameter)], optimizer, level, 0, 1)
    assert (part.start, part.numel, part.shape) == (0, 3, (3,))
    refresh_weights(optimizer, level)
    parameter.requires_grad = False
    assert len(list(frozen_slices([("a", parameter)], level, 0, 1))) == 1
    assert whole_shape(parameter, level) == (3,)


def fields(level: int) -> list[str]:
    optimizer, parameter = stand_in(level)
    return [*vars(optimizer), *vars(parameter)]


@pytest.mark.parametrize(("level", "field"), [(level, field) for level in (2, 3) for field in fields(level)])
def test_a_field_that_is_missing_is_named(level, field):
    read_all(*stand_in(level), level)
    optimizer, parameter = stand_in(level)
    delattr(optimizer if hasattr(optimizer, field) else parameter, field)
    with pytest.raises(RunError) as raised:
        read_all(optimizer, parameter, level)
    assert all(told in str(raised.value) for told in (field, f"deepspeed {version('deepspeed')}", TESTED))


def test_the_first_field_that_is_there_counts():
    assert internal(SimpleNamespace(b=2, c=3), "a", "b", "c") == 2
    with pytest.raises(RunError, match="SimpleNamespace has no a or d"):
        internal(SimpleNamespace(), "a", "d")


def test_the_range_is_that_of_the_package_and_holds_the_locked_version():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"deepspeed{TESTED}" in dependencies
    [locked] = re.findall(r"^deepspeed==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked in SpecifierSet(TESTED)
    assert version("deepspeed") in SpecifierSet(TESTED)


def test_no_other_module_reads_a_private_field():
    names = {field for level in (2, 3) for field in fields(level)} | {"convert_to_zero_parameters"}
    found = re.compile(rf"\.({'|'.join(names)})\b|\.checkpoint_event_|\.__compatible_ops__")
    files = sorted(path for room in ("ranks", "train") for path in (ROOT / "llava_train" / room).rglob("*.py"))
    assert len(files) > 30
    assert not [(path.name, match[0]) for path in files for match in found.finditer(path.read_text())]
