"""Where a module computes."""

from __future__ import annotations

import torch
from torch import nn


def device_of(module: nn.Module) -> torch.device:
    """The device of a module's weights. Where accelerate keeps them elsewhere, its hooks know the device.

    Those of a module around it do not run, since the forward calls the parts by themselves.
    """
    hooks = (getattr(part, "_hf_hook", None) for part in module.modules())
    named = (device for hook in hooks if (device := getattr(hook, "execution_device", None)) is not None)
    device = next(named, None)
    return next(module.parameters()).device if device is None else torch.device(device)
