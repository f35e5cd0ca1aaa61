"""A micro-batch on the fake GPU: of every kind of sample, under every kind of stage, and with each mistake planted.

Run by `test_fake_gpu.py`; alone: `python tests/fakegpu/process.py checks_micro_batch.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from fake_gpu import FakeGpu, HostWaits, NotOnDevice
from micro_batches import make, pack, run, sample
from torch import nn

from llava_train.batch.packed import PackedBatch
from llava_train.config.schema import LearningRates, LoraConfig
from llava_train.costs.flops import Recomputed
from llava_train.data.loading.collate import filler
from llava_train.model.forward.packed_forward import PackedForward
from llava_train.model.hf_folder.preparation import checkpoint_geometry
from llava_train.model.loading.tiny_model import byte_tokenizer, tiny_config

ALL = LearningRates(1e-5, 1e-5, 1e-5)
PROJECTOR = LearningRates("frozen", 1e-3, "frozen")
STAGES = {
    "all parts": (ALL, {}, Recomputed()),
    "every layer again": (ALL, {}, Recomputed(2, 2)),
    "one layer again": (ALL, {}, Recomputed(1, 1)),
    "projector": (PROJECTOR, {}, Recomputed(0, 2)),
    "lora": (
        replace(PROJECTOR, language_model=1e-4),
        {"language_model": LoraConfig(4, 8, dropout=0.1)},
        Recomputed(0, 1),
    ),
    "dora": (ALL, {part: LoraConfig(2, 4, dora=True) for part in vars(ALL)}, Recomputed(1, 1)),
}
CONFIG = tiny_config(byte_tokenizer())
GEOMETRY = checkpoint_geometry(CONFIG)
VISUALS = {
    "text": [],
    "image": [GEOMETRY.image(30, 80)],
    "downscaled image": [GEOMETRY.image(900, 300)],
    "square image": [replace(GEOMETRY, mode="square").image(30, 40)],
    "several images": [GEOMETRY.padded(30, 40), GEOMETRY.padded(50, 20), GEOMETRY.padded(9, 9)],
    "video": [GEOMETRY.video(5, 30, 40)],
}
MIXED, FILLER = "all of them", "filler"
CASES = [(stage, kind) for stage in ("all parts", "every layer again") for kind in (*VISUALS, MIXED, FILLER)]
CASES += [(stage, kind) for stage in ("one layer again", "projector", "lora") for kind in (MIXED, FILLER)]
CASES += [("dora", MIXED)]


def batch(kind: str) -> PackedBatch:
    if kind == FILLER:
        return filler(GEOMETRY.tile_size)
    return pack([sample(layouts) for name, layouts in VISUALS.items() if kind in (name, MIXED)], GEOMETRY)


def forward_of(gpu: FakeGpu, stage: str, buffers: bool = True) -> PackedForward:
    return make(gpu, CONFIG, *STAGES[stage], buffers)


@pytest.mark.parametrize(("stage", "kind"), CASES)
def test_a_micro_batch_stays_on_the_device_and_its_host_never_waits(gpu, stage, kind):
    forward = forward_of(gpu, stage)
    loss = run(gpu, forward, batch(kind))
    assert (loss.device, loss.dtype, loss.shape) == (gpu.device, torch.float32, ())
    dtypes = {parameter.dtype for parameter in forward.parameters()}
    assert dtypes == {torch.bfloat16}
    for name, parameter in forward.named_parameters():
        assert parameter.device == gpu.device, name
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_held_out_loss_stays_on_the_device_and_its_host_never_waits(gpu):
    forward = forward_of(gpu, "lora").eval()
    with gpu.micro_batch(), torch.no_grad():
        assert forward(batch(MIXED)).device == gpu.device


def test_buffers_left_on_the_host_are_seen(gpu):
    with pytest.raises(NotOnDevice, match=r"aten.embedding.default: int64 \[1, 16\] on the host"):
        run(gpu, forward_of(gpu, "all parts", buffers=False), batch("text"))


@pytest.mark.parametrize("left", ["embeddings.position_ids", "rotary_emb.inv_freq"])
def test_one_buffer_left_on_the_host_is_seen(gpu, left):
    forward = forward_of(gpu, "all parts")
    [(owner, name)] = [
        (owner, name)
        for path, owner in forward.named_modules()
        for name in owner._buffers
        if f"{path}.{name}".endswith(left)
    ]
    with gpu.mode:
        owner._buffers[name] = owner._buffers[name].cpu()
    with pytest.raises((NotOnDevice, HostWaits), match=r"host|cpu"):
        run(gpu, forward, batch("text"))


WAITS: dict[str, Callable[[torch.Tensor], object]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool(x.sum() > 0),
    "tolist": lambda x: x.sum(0).tolist(),
    "cpu": lambda x: x.cpu(),
    "to cpu": lambda x: x.to("cpu"),
    "to cpu without waiting": lambda x: x.to("cpu", non_blocking=True),
    "copy into the host's": lambda x: torch.empty(x.shape).copy_(x),
    "print": lambda x: f"{x}",
    "repr": lambda x: repr(x),
    "nonzero": lambda x: (x > 0).nonzero(),
    "boolean index": lambda x: x[x > 0],
    "set by a boolean index": lambda x: x.detach().index_put((x > 0,), x.new_zeros(3)),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "repeats that are tensors": lambda x: x.repeat_interleave(x[0, 0, :1].long(), 0),
    "equal": lambda x: torch.equal(x, x * 2),
    "numbers to the device": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "to the device, waiting": lambda x: torch.ones(3).to(x.device),
    "copy from the host's, waiting": lambda x: x.detach().sum((0, 1)).copy_(torch.ones(64)),
    "synchronize": lambda x: torch.accelerator.synchronize(),
}
STRAYS: dict[str, Callable[[torch.Tensor], object]] = {
    "added": lambda x: x + torch.ones(64),
    "scalar": lambda x: x * torch.tensor(2.0),
    "index": lambda x: x[:, torch.tensor([0, 1])],
    "in place": lambda x: x.detach().add_(torch.ones(64)),
    "concatenated": lambda x: torch.cat([x, torch.ones(1, 1, 64)], 1),
    "weight": lambda x: nn.functional.linear(x.float(), torch.ones(3, 64)),
}


def planted(gpu: FakeGpu, plant: Callable[[torch.Tensor], object]) -> PackedForward:
    """A mistake behind the first layer of the language model."""
    forward = forward_of(gpu, "all parts")

    def hook(_module: nn.Module, _args: object, output: torch.Tensor) -> None:
        plant(output)

    forward.hf_model.model.language_model.layers[0].register_forward_hook(hook)
    return forward


@pytest.mark.parametrize("plant", WAITS)
def test_each_wait_of_the_host_is_seen(gpu, plant):
    with pytest.raises(HostWaits):
        run(gpu, planted(gpu, WAITS[plant]), batch("image"))


@pytest.mark.parametrize("plant", STRAYS)
def test_each_tensor_of_the_host_is_seen(gpu, plant):
    with pytest.raises(NotOnDevice):
        run(gpu, planted(gpu, STRAYS[plant]), batch("image"))


def test_what_happens_in_the_backward_alone_is_seen(gpu):
    for plant, error in ((WAITS["item"], HostWaits), (WAITS["cpu"], HostWaits), (STRAYS["added"], NotOnDevice)):

        def hook(grad: torch.Tensor, plant: Callable[[torch.Tensor], object] = plant) -> None:
            plant(grad)

        with pytest.raises(error):
            run(gpu, planted(gpu, lambda x, hook=hook: x.register_hook(hook)), batch("image"))


def test_what_happens_when_a_layer_runs_again_is_seen(gpu):
    forward, runs = forward_of(gpu, "every layer again"), []

    def hook(_module: nn.Module, args: tuple[torch.Tensor]) -> None:
        runs.append(torch._C._current_graph_task_id())
        if len(runs) > 1:
            args[0].sum().item()

    forward.hf_model.model.vision_tower.encoder.layers[0].mlp.register_forward_pre_hook(hook)
    with pytest.raises(HostWaits):
        run(gpu, forward, batch("image"))
    assert [backward == -1 for backward in runs] == [True, False]
