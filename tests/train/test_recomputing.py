"""torch.compile of layers and loss: the same loss and gradients, and one set of graphs for packs of all sizes."""

from functools import partial

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from llava_train.batch.packed import PackedBatch
from llava_train.costs.flops import Recomputed
from llava_train.model.forward.packed_forward import PackedForward
from llava_train.model.hf_folder.preparation import checkpoint_geometry
from llava_train.model.loading.tiny_model import byte_tokenizer, tiny_config, tiny_model
from llava_train.train.recomputing import _compile, set_layers


def pack(num_documents: int, length: int) -> PackedBatch:
    ids = torch.randint(0, 200, (num_documents * length,))
    learned = (torch.arange(len(ids)) % length).nonzero().squeeze(1)
    labels = torch.full_like(ids, -100).index_copy(0, learned, ids[learned])
    bounds = torch.arange(0, len(ids) + 1, length, dtype=torch.int32)
    pixels, nothing = torch.zeros(0, 3, 28, 28, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)
    positions = torch.arange(length).repeat(num_documents)
    names = tuple(f"a/{i}" for i in range(num_documents))
    return PackedBatch(ids, labels, learned, positions, bounds, length, pixels, nothing, (), names)


def outcome(forward: PackedForward, batch: PackedBatch) -> dict[str, torch.Tensor]:
    forward.zero_grad()
    loss = forward(batch)
    loss.backward()
    trained = {name: parameter.grad for name, parameter in forward.named_parameters() if parameter.grad is not None}
    return {"loss": loss.detach()} | trained


@pytest.fixture
def fresh():
    """Nothing compiled before, nothing left behind."""
    torch._dynamo.reset()
    counters.clear()
    _compile.cache_clear()
    yield
    torch._dynamo.reset()
    _compile.cache_clear()


@pytest.mark.parametrize("recomputed", [Recomputed(), Recomputed(1, 1)], ids=["kept", "half recomputed"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_layers_give_the_same_whatever_the_size(fresh, monkeypatch, backend, recomputed):
    torch.manual_seed(0)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    packs = [pack(3, 7), pack(2, 20), pack(5, 33), pack(1, 10), pack(2, 64)]
    plain, compiled = (tiny_model(tiny_config(byte_tokenizer())).train() for _ in range(2))
    set_layers(compiled, recomputed, compiled=True)
    ours = PackedForward(compiled, checkpoint_geometry(compiled.config), compiled=True)
    theirs = PackedForward(plain, checkpoint_geometry(plain.config))
    graphs = []
    for one in packs:
        torch.testing.assert_close(outcome(ours, one), outcome(theirs, one), atol=1e-4, rtol=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[-1] == graphs[2], "none is compiled anew for sizes that differ"


def test_compiled_recomputed_layers_are_compiled(fresh, monkeypatch):
    """Where the layer around the checkpoint were compiled in its place, nothing would be."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model = tiny_model(tiny_config(byte_tokenizer())).train()
    set_layers(model, Recomputed(2, 2), compiled=True)
    outcome(PackedForward(model, checkpoint_geometry(model.config)), pack(2, 5))
    assert counters["stats"]["unique_graphs"] > 0


def test_as_many_graphs_for_eight_layers_as_for_two(monkeypatch):
    """Whatever a layer carries of its own, torch.compile guards, and then compiles it by itself."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    graphs = []
    for num_layers in (2, 8):
        torch._dynamo.reset()
        counters.clear()
        config = tiny_config(byte_tokenizer(), text={"num_hidden_layers": num_layers})
        model = tiny_model(config).to(torch.bfloat16).train()
        set_layers(model, Recomputed(), compiled=True)
        ours = PackedForward(model, checkpoint_geometry(model.config), compiled=True)
        for one in (pack(3, 7), pack(2, 20)):
            outcome(ours, one)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] > 0
    torch._dynamo.reset()


@torch.library.custom_op("llava_train_tests::varlen", mutates_args=())
def varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, longest: int
) -> torch.Tensor:
    """Stands in for the GPU's kernel: as opaque to torch.compile."""
    assert int(bounds.diff().max()) == longest
    return query + key.repeat_interleave(query.shape[1] // key.shape[1], dim=1) + value.mean()


varlen.register_fake(lambda query, *_: torch.empty_like(query))


@pytest.mark.parametrize("recomputed", [Recomputed(), Recomputed(0, 3)], ids=["kept", "recomputed"])
def test_varlen_attention_breaks_no_layer_and_no_pack_compiles_anew(monkeypatch, fresh, recomputed):
    def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa=False):
        return varlen(query, key, value, cu_seq_q, max_q)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    monkeypatch.setattr("llava_train.model.forward.packed_forward.choose_kernel", lambda *_: "varlen")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model = tiny_model(tiny_config(byte_tokenizer(), text={"num_hidden_layers": 3})).train()
    set_layers(model, recomputed, compiled=True)
    ours, graphs = PackedForward(model, checkpoint_geometry(model.config)), []
    with torch.no_grad():
        for one in (pack(3, 7), pack(2, 20), pack(5, 33), pack(1, 10)):
            ours(one)
            graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[-1] == graphs[1]
    assert all("_tiles_on_cpu" in reason for reason in counters["graph_break"]), "the tower's, on a CPU"


def test_at_zero_3_gates_alone_are_compiled(fresh, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain, compiled = (tiny_model(tiny_config(byte_tokenizer())).train() for _ in range(2))
    set_layers(compiled, Recomputed(1, 1), compiled=True, zero_level=3)
    ours, theirs = (PackedForward(model, checkpoint_geometry(model.config)) for model in (compiled, plain))
    for one in (pack(3, 7), pack(2, 20)):
        torch.testing.assert_close(outcome(ours, one), outcome(theirs, one), atol=1e-5, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
