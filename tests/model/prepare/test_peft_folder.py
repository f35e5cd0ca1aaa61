"""Adapters that PEFT wrote, in each of its ways: PEFT's own logits on the base, or a refusal with the reason."""

from __future__ import annotations

import json
import re
import shutil
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from onevision_reference import SINGLE, Ours
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration

from llava_train.batch.packed import PackedBatch
from llava_train.family.onevision.geometry import OneVisionGeometry
from llava_train.model.forward.packed_forward import PackedForward
from llava_train.model.hf_folder.preparation import checkpoint_geometry
from llava_train.model.loading.tiny_model import make_tiny
from llava_train.model.prepare.adapter import attach_adapter
from llava_train.shared.errors import ConfigError

LANGUAGE = r".*language_model.*\.(q_proj|v_proj)"
QV = ["q_proj", "v_proj"]  # of the language model and of the tower
SAME = {
    "plain": {"target_modules": QV},
    "biases of adapted layers": {"target_modules": LANGUAGE, "bias": "lora_only"},
    "all biases": {"target_modules": LANGUAGE, "bias": "all"},
    "biases of B": {"target_modules": LANGUAGE, "lora_bias": True},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["v_proj", "embed_tokens"]},
    "embedding whole": {"target_modules": LANGUAGE, "modules_to_save": ["embed_tokens"]},
    "head whole": {"target_modules": LANGUAGE, "modules_to_save": ["lm_head"]},
    "both whole": {"target_modules": LANGUAGE, "modules_to_save": ["embed_tokens", "lm_head"]},
    "projector and norms whole": {"target_modules": QV, "modules_to_save": ["multi_modal_projector", "layer_norm1"]},
    "norms by the end of their names": {"target_modules": LANGUAGE, "modules_to_save": ["norm"]},
    "patterns": {"target_modules": QV, "rank_pattern": {"q_proj": 2, r"layers.1.self_attn.v_proj": 3},
                 "alpha_pattern": {r".*language_model.*\.v_proj": 32}},
    "rslora": {"target_modules": QV, "use_rslora": True},
    "dora": {"target_modules": QV, "use_dora": True},
    "one layer": {"target_modules": QV, "layers_to_transform": [1], "layers_pattern": "layers"},
    "fan in, fan out": {"target_modules": QV, "fan_in_fan_out": True},
    "excluded": {"target_modules": QV, "exclude_modules": r".*vision_tower.*"},
    "all linear": {"target_modules": "all-linear"},
    "patches": {"target_modules": ["patch_embedding", "linear_1"]},
}  # fmt: skip


@dataclass(frozen=True)
class Base:
    folder: Path
    hf_model: LlavaOnevisionForConditionalGeneration
    geometry: OneVisionGeometry
    batch: PackedBatch

    def inputs(self) -> dict[str, torch.Tensor]:
        pixels = (self.batch.pixel_values.float() / 255 - 0.5) / 0.5
        ids, sizes = self.batch.input_ids[None], torch.tensor(SINGLE.images)
        return {"input_ids": ids, "pixel_values": pixels, "image_sizes": sizes}

    @torch.no_grad()
    def logits(self, model) -> torch.Tensor:
        return model.eval()(**self.inputs()).logits[0]


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[bool, Base]:
    """By whether the embedding and the head are tied."""
    found = {}
    for tied in (True, False):
        folder = make_tiny(tmp_path_factory.mktemp("bases") / "tiny", tied=tied)
        hf_model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder)
        config, geometry = hf_model.config, checkpoint_geometry(hf_model.config)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        cases = Ours(tokenizer, geometry, config.image_token_index, config.video_token_index)
        found[tied] = Base(folder, hf_model, geometry, cases.pack((SINGLE,)))
    return found


def write(folder: Path, base: Base, **options) -> torch.Tensor:
    """An adapter in which every weight that it has matters, and its logits by PEFT."""
    wrapped = get_peft_model(deepcopy(base.hf_model), LoraConfig(r=4, lora_alpha=8, **options))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    wrapped.save_pretrained(str(folder))
    return base.logits(wrapped)


def assert_logits(base: Base, folder: Path, expected: torch.Tensor) -> None:
    """By transformers' forward and by ours."""
    ours = deepcopy(base.hf_model)
    attach_adapter(ours, folder)
    torch.testing.assert_close(base.logits(ours), expected, rtol=0, atol=1e-4)  # kernels go by a weight's alignment
    with torch.no_grad():
        packed = ours.lm_head(PackedForward(ours, base.geometry).hidden_states(base.batch))
    torch.testing.assert_close(packed, expected, rtol=0, atol=1e-4)
    assert (base.logits(base.hf_model) - expected).abs().max() > 1e-2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", SAME)
def test_an_adapter_gives_pefts_logits(tmp_path, bases, kind):
    for tied in (True, False) if any(word in kind for word in ("embedding", "head", "both")) else (True,):
        expected = write(tmp_path / f"{tied}", bases[tied], **SAME[kind])
        assert_logits(bases[tied], tmp_path / f"{tied}", expected)


def test_on_a_bf16_base_an_adapter_computes_in_fp32_as_peft_lets_it(tmp_path, bases):
    base = replace(bases[True], hf_model=deepcopy(bases[True].hf_model).bfloat16())
    expected = write(tmp_path / "adapter", base, target_modules=LANGUAGE)
    ours = deepcopy(base.hf_model)
    attach_adapter(ours, tmp_path / "adapter")
    assert {p.dtype for name, p in ours.named_parameters() if ".lora_" in name} == {torch.float32}
    two_units = 2 * 2**-8 * float(expected.abs().max())  # of the last place, in bf16
    torch.testing.assert_close(base.logits(ours), expected, rtol=0, atol=two_units)


def test_a_pickle_of_tensors_alone_is_read_too(tmp_path, bases):
    expected = write(tmp_path, bases[True], target_modules=QV)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(tensors, tmp_path / "adapter_model.bin")
    assert_logits(bases[True], tmp_path, expected)


def renamed(folder: Path, out: Path, *pairs: tuple[str, str]) -> Path:
    """The folder under other names of modules, in its weights and in its config."""
    shutil.copytree(folder, out)
    tensors = load_file(out / "adapter_model.safetensors")
    for old, new in pairs:
        tensors = {key.replace(f"base_model.model.{old}", f"base_model.model.{new}"): t for key, t in tensors.items()}
    save_file(tensors, out / "adapter_model.safetensors", {"format": "pt"})
    return out


BEFORE_4_52 = (
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
)
BEFORE_5 = (("model.vision_tower.", "model.vision_tower.vision_model."),)


def edit(folder: Path, **options) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("names", [BEFORE_4_52, BEFORE_5], ids=["4.45 to 4.51", "4.52 to 4.57"])
def test_names_of_older_transformers_are_mapped(tmp_path, bases, names):
    base = bases[True]
    targets = {"target_modules": [*QV, "lm_head"], "modules_to_save": ["multi_modal_projector"]}
    expected = write(tmp_path / "now", base, **targets)
    assert_logits(base, renamed(tmp_path / "now", tmp_path / "old", *names), expected)


LAYERS = {
    "5": (r"model\.language_model\.layers", r"model\.vision_tower\.encoder\.layers"),
    "4.52 to 4.57": (r"model\.language_model\.layers", r"model\.vision_tower\.vision_model\.encoder\.layers"),
    "4.45 to 4.51": (r"language_model\.model\.layers", r"vision_tower\.vision_model\.encoder\.layers"),
}


@pytest.mark.parametrize("names", [BEFORE_4_52, BEFORE_5], ids=["4.45 to 4.51", "4.52 to 4.57"])
def test_patterns_are_read_by_the_names_that_they_were_written_for(tmp_path, bases, request, names):
    def options(version: str) -> dict:
        language, tower = LAYERS[version]
        ends = r"\.1\.self_attn\.(q_proj|v_proj)"
        return {"target_modules": f"({language}|{tower}){ends}", "rank_pattern": {tower + ends: 2}}

    base = bases[True]
    expected = write(tmp_path / "now", base, **options("5"))
    old = renamed(tmp_path / "now", tmp_path / "old", *names)
    assert_logits(base, edit(old, **options(request.node.callspec.id)), expected)


def test_the_embedding_that_peft_stores_beside_an_adapter_is_read(tmp_path, bases):
    for tied, base in bases.items():
        wrapped = get_peft_model(deepcopy(base.hf_model), LoraConfig(target_modules=LANGUAGE, init_lora_weights=False))
        with torch.no_grad():
            wrapped.get_input_embeddings().weight.mul_(1.1)
        wrapped.save_pretrained(str(tmp_path / f"{tied}"), save_embedding_layers=True)
        assert_logits(base, tmp_path / f"{tied}", base.logits(wrapped))


REFUSED = {
    "trainable_token_indices=[5, 6]": {"target_modules": QV, "trainable_token_indices": [5, 6]},
    "ensure_weight_tying=True": {"target_modules": QV, "modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    "alora_invocation_tokens=[5]": {"target_modules": QV, "alora_invocation_tokens": [5], "task_type": "CAUSAL_LM"},
    "initialised by pissa": {"target_modules": QV, "init_lora_weights": "pissa"},
    "target_parameters": {"target_modules": [], "target_parameters": ["self_attn.q_proj.weight"]},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("told", REFUSED)
def test_what_is_not_read_is_refused_by_its_option(tmp_path, bases, told):
    folder = tmp_path / "adapter"
    get_peft_model(deepcopy(bases[True].hf_model), LoraConfig(**REFUSED[told])).save_pretrained(str(folder))
    with pytest.raises(ConfigError, match=re.escape(told)) as caught:
        attach_adapter(deepcopy(bases[True].hf_model), folder)
    assert "merge_and_unload" in str(caught.value)


def test_another_kind_and_a_broken_config_are_refused(tmp_path, bases):
    get_peft_model(
        deepcopy(bases[True].hf_model), IA3Config(target_modules=QV, feedforward_modules=[])
    ).save_pretrained(str(tmp_path))
    with pytest.raises(ConfigError, match="is a IA3 adapter"):
        attach_adapter(deepcopy(bases[True].hf_model), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"adapter_config\.json is no JSON"):
        attach_adapter(deepcopy(bases[True].hf_model), tmp_path)


@pytest.mark.parametrize("option", [{"r": "4"}, {"r": 0}, {"lora_alpha": None}, {"target_modules": "("}], ids=str)
def test_an_option_of_another_form_is_refused_by_name(tmp_path, bases, option):
    write(tmp_path, bases[False], target_modules=QV)
    [(name, value)] = option.items()
    with pytest.raises(ConfigError, match=re.escape(f"adapter_config.json says {name}={value!r}")):
        attach_adapter(deepcopy(bases[False].hf_model), edit(tmp_path, **option))


def test_a_file_that_does_not_fit_is_told_by_what_differs(tmp_path, bases):
    base = bases[True]
    write(tmp_path / "whole", base, target_modules=QV)
    tensors = load_file(tmp_path / "whole/adapter_model.safetensors")
    layer = "model.language_model.layers.0.self_attn.q_proj"
    other = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    key = f"base_model.model.{layer}.lora_A.weight"
    without_b = {k: t for k, t in tensors.items() if k != f"base_model.model.{layer}.lora_B.weight"}
    cases = {
        f"targets {layer}, of which it holds no weights": {k: t for k, t in tensors.items() if layer not in k},
        "holds weights of model.layers.0.self_attn.q_proj, no target": tensors | {other: tensors[key].clone()},
        f"does not fit the model: {layer}.lora_B.weight": without_b,
        f"does not fit the model: {layer}.lora_A.weight": tensors | {key: torch.zeros(3, 64)},
    }
    for number, (told, changed) in enumerate(cases.items()):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / str(number))
        save_file(changed, folder / "adapter_model.safetensors", {"format": "pt"})
        with pytest.raises(ConfigError, match=re.escape(told)):
            attach_adapter(deepcopy(base.hf_model), folder)
    whole = tmp_path / "whole/adapter_model.safetensors"
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"adapter: .*is cut off"):
        attach_adapter(deepcopy(base.hf_model), tmp_path / "whole")
