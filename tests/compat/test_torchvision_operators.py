"""torchvision's operators are defined where its own do not load, and left alone where they do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
_PROGRAM = """
import torch
load = torch.ops.load_library
def load_or_fail(path):
    if {loads}:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        own.append(library)
    else:
        raise OSError(path)
own, torch.ops.load_library = [], load_or_fail
import torchvision_operators
assert hasattr(torch.ops.torchvision, "nms")
print(hasattr(torchvision_operators, "library"))
"""


@pytest.mark.parametrize(("loads", "defined"), [(True, "False"), (False, "True")])
def test_operators_are_defined_where_torchvisions_own_do_not_load(tmp_path, loads, defined):
    (tmp_path / "torchvision").mkdir()
    for name in ("__init__.py", "_C.so"):
        (tmp_path / "torchvision" / name).touch()
    environ = os.environ | {"PYTHONPATH": os.pathsep.join((str(HERE), str(tmp_path)))}
    program = [sys.executable, "-c", _PROGRAM.format(loads=loads)]
    done = subprocess.run(program, env=environ, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [defined], done.stderr
