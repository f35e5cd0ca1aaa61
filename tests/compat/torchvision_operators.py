"""Makes torchvision importable beside a CPU build of torch. Scripts that run in subprocesses import it first."""

from importlib.util import find_spec
from pathlib import Path

import torch


def library_loads() -> bool:
    """Whether torchvision's own operators, which its import looks for, load beside this build of torch."""
    spec = find_spec("torchvision")
    files = [file for folder in spec.submodule_search_locations for file in Path(folder).glob("_C*.so")] if spec else []
    try:
        for file in files:
            torch.ops.load_library(str(file))
    except OSError:
        return False
    return hasattr(torch.ops.torchvision, "nms")


if not library_loads():
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
