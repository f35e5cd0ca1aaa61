"""A quantised base: which layers, how near to the plain ones, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from onevision_reference import KINDS, Ours
from safetensors.torch import load_file, save_file

from llava_train.batch.packed import PackedBatch
from llava_train.config.schema import GenerateModel
from llava_train.model.forward.packed_forward import PackedForward
from llava_train.model.hf_folder.preparation import checkpoint_geometry
from llava_train.model.loading import quantized
from llava_train.model.loading.load_model import LoadedModel, load_checkpoint
from llava_train.model.prepare.trained_parts import part_table
from llava_train.shared.errors import ConfigError

CLASSES = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}
WIDEST_GAP = 1 - 0.6961928009986877  # between neighbours of NF4 (Dettmers et al. 2023, appendix E)
WEIGHT = "language_model.model.layers.0.mlp.up_proj.weight"


def load(folder, load_in, dtype=torch.float32) -> LoadedModel:
    return load_checkpoint(GenerateModel(str(folder)), dtype, load_in)


def packed_forward(loaded: LoadedModel) -> PackedForward:
    return PackedForward(loaded.model, checkpoint_geometry(loaded.model.config))


def pack(loaded: LoadedModel, cases) -> PackedBatch:
    config = loaded.model.config
    ours = Ours(loaded.tokenizer, checkpoint_geometry(config), config.image_token_index, config.video_token_index)
    return ours.pack(cases)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "auto"])
@pytest.mark.parametrize("load_in", CLASSES)
def test_the_layers_of_the_language_model_alone_are_quantised(tiny_folder, load_in, dtype):
    plain, packed = (load(tiny_folder, how, dtype).model for how in ("none", load_in))
    kinds = {name: type(module).__name__ for name, module in packed.named_modules()}
    found = {name for name, kind in kinds.items() if kind == CLASSES[load_in]}
    assert len(found) == 2 * 7
    assert all(name.startswith("model.language_model.layers.") for name in found)
    weights = dict(packed.named_parameters())
    for name, parameter in plain.named_parameters():
        if name.removesuffix(".weight") not in found:
            assert torch.equal(weights[name], parameter), name
    assert packed.dtype == plain.dtype
    assert "quantization_config" not in packed.config.to_dict()


def test_weights_are_within_half_a_step_of_the_plain_ones(tiny_folder):
    plain, four, eight = (load(tiny_folder, how).model for how in ("none", "4bit", "8bit"))
    name = "model.language_model.layers.0.mlp.down_proj"
    weight = plain.get_submodule(name).weight  # [64, 128]
    four, eight = (
        model.get_submodule(name).train()(torch.eye(128)).T for model in (four, eight)
    )  # rounds weights alone
    largest = weight.view(-1, 64).abs().amax(dim=1, keepdim=True).expand(-1, 64).reshape(64, 128)
    assert ((four - weight).abs() <= largest * WIDEST_GAP / 2 * 1.001).all()
    # weights go to fp16, with 11 bits, before they are rounded to 127 steps of their row's largest
    half_a_step = (1 + 2**-11) / 127 / 2
    assert ((eight - weight).abs() <= weight.abs().amax(dim=1, keepdim=True) * (half_a_step + 2**-11)).all()
    assert (four - weight).abs().mean() > 5 * (eight - weight).abs().mean() > 0


@pytest.mark.parametrize("load_in", CLASSES)
def test_packed_loss_equals_unpacked_loss(tiny_folder, load_in):
    """In training, whose products on a CPU are of dequantised weights and fp32 activations."""
    loaded = load(tiny_folder, load_in)
    forward = packed_forward(loaded).train()
    with torch.no_grad():
        apart = sum(forward(pack(loaded, (case,))) for case in KINDS)
        torch.testing.assert_close(forward(pack(loaded, KINDS)), apart, rtol=1e-5, atol=0)


def test_packed_loss_of_rounded_activations_differs_by_no_more_than_their_rounding(tiny_folder):
    """In evaluation an 8-bit layer rounds its input to fp16 and then to 127 steps of its row's largest value.

    A value next to the middle of two steps may go either way after a change of 1e-7, such as another order of a sum,
    and so a processor's; and in a pack the columns in which any sample has an outlier are not rounded at all. What is
    rounded otherwise moves by a step at most, which is twice what rounding moves it. So the bound is twice the distance
    from the loss of unrounded activations, document by document. Relative to the loss, six seeds, AVX512, AVX2 and
    neither: that distance is 4e-4 to 1.3e-3, packed and apart differ by 1e-6 to 4e-4.
    """
    loaded = load(tiny_folder, "8bit")
    forward = packed_forward(loaded)
    batches = [pack(loaded, (case,)) for case in KINDS]
    with torch.no_grad():
        unrounded = torch.stack([forward.train()(batch) for batch in batches])
        rounded = torch.stack([forward.eval()(batch) for batch in batches])
        packed = forward(pack(loaded, KINDS))
    rounding = (rounded - unrounded).abs().sum()
    assert 0 < rounding < 1e-2 * rounded.sum()
    assert (packed - rounded.sum()).abs() <= 2 * rounding


def test_the_table_of_parts_counts_weights_not_bytes(tiny_folder):
    loaded = [load(tiny_folder, how) for how in ("none", "4bit", "8bit")]
    tables = [part_table(one.model, one.sources) for one in loaded]
    counts = [[row.num_parameters for row in table] for table in tables]
    assert counts[0] == counts[1] == counts[2]


def test_it_trains_on_after_an_evaluation_on_any_processor(tiny_folder, monkeypatch):
    """Where the CPU has AVX512-BF16, bitsandbytes repacks weights that are evaluated, into a form without backward."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    one = load(tiny_folder, "4bit")
    model, forward = one.model, packed_forward(one)
    row = pack(one, KINDS)
    weights = {name: p.clone() for name, p in model.named_parameters() if not p.is_floating_point()}
    with torch.no_grad():
        evaluated = forward.eval()(row)
    trained = forward.train()(row)
    torch.testing.assert_close(trained, evaluated)
    trained.backward()
    assert model.model.language_model.embed_tokens.weight.grad.any()
    assert all(torch.equal(dict(model.named_parameters())[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize(
    ("skipped", "told"),
    [
        (["vision_tower"], "vision_tower: 12 layers are Linear4bit instead of Linear, as model.vision_tower.encoder"),
        (["model.vision_tower", "lm_head"], "projector: 2 layers are Linear4bit instead of Linear"),
        (["model.vision_tower", "model.multi_modal_projector"], "language_model: 1 layers are Linear4bit .* lm_head"),
        (["model"], "language_model: 14 layers are Linear instead of Linear4bit"),
    ],
    ids=["tower", "projector", "lm_head", "language_model"],
)
def test_a_part_of_the_wrong_kind_is_named(tiny_folder, monkeypatch, skipped, told):
    monkeypatch.setattr(quantized, "NOT_QUANTISED", skipped)
    with pytest.raises(ConfigError, match=told):
        load(tiny_folder, "4bit")


@pytest.mark.parametrize("load_in", CLASSES)
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.pop(WEIGHT), "missing: model.language_model.layers.0.mlp.up_proj.weight"),
        (lambda w: w.update(extra=torch.zeros(1)), "unexpected: extra"),
        (lambda w: w.update({WEIGHT: torch.zeros(64, 64)}), "of another shape: .*up_proj.weight"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_keys_that_do_not_fit_are_named(tiny_folder, tmp_path, change, told, load_in):
    folder = shutil.copytree(tiny_folder, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=told):
        load(folder, load_in)


def test_rows_of_broken_blocks_are_refused_in_4_bits(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "narrow")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = 96
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"down_proj.weight have 96 weights.*multiple of 64\n.*load_in=8bit"):
        load(folder, "4bit")


def test_without_bitsandbytes_it_is_told_how_to_install_it(tiny_folder, monkeypatch):
    monkeypatch.setattr(quantized, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'llava_train\[quant\]'"):
        load(tiny_folder, "8bit")
