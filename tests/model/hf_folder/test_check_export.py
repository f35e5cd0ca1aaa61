"""Each check of an export fails when its thing is broken, and says what."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava_train.config.schema import VideoConfig
from llava_train.model.files.tensor_names import export_name
from llava_train.model.hf_folder import check_export, weights
from llava_train.model.hf_folder.folder import write_support
from llava_train.model.hf_folder.preparation import Preparation, checkpoint_geometry
from llava_train.model.hf_folder.weights import expected_specs, write_weights
from llava_train.model.loading.tiny_model import byte_tokenizer, tiny_config, tiny_model
from llava_train.shared.errors import RunError
from llava_train.shared.host_memory import peak_memory, restart_peak

NORMS = ("model.language_model.layers.0.input_layernorm.weight", "model.language_model.layers.1.input_layernorm.weight")


@dataclass
class Export:
    folder: Path
    config: Any
    hashes: dict[str, str]
    tensors: dict[str, torch.Tensor]

    def prove(self):
        return check_export.prove(self.folder, self.config, self.hashes, self.tensors.__getitem__)

    def change_json(self, name, change):
        path = self.folder / name
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    def change_file(self, change):
        path = next(iter(sorted(self.folder.glob("model*.safetensors"))))
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})


def make(folder, tied=False, dtype=torch.float32) -> Export:
    tokenizer = byte_tokenizer()
    model = tiny_model(tiny_config(tokenizer, tied=tied)).to(dtype)
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    folder.mkdir()
    specs = expected_specs(model.config, dtype)
    hashes = write_weights(folder, specs, ((name, tensors[name]) for name in specs))
    notes = Preparation(checkpoint_geometry(model.config), "qwen", "front", VideoConfig(1.0, 4))
    write_support(folder, model.config, tokenizer, notes, dtype)
    return Export(folder, model.config, hashes, tensors)


@pytest.fixture
def export(tmp_path) -> Export:
    return make(tmp_path / "out")


def refused(export, check, *told):
    with pytest.raises(RunError) as error:
        export.prove()
    assert f"{check}: " in str(error.value)
    assert all(text in str(error.value) for text in told), error.value


def swap(tensors, one, other):
    tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_whole_export_passes_every_check(tmp_path, monkeypatch, tied, dtype):
    monkeypatch.setattr(weights, "MAX_SHARD_BYTES", 100_000)
    export = make(tmp_path / "out", tied, dtype)
    assert (export.folder / weights.INDEX_FILE).exists()
    checks = export.prove()
    assert [check.done for check in checks] == [True] * 5
    assert checks[0].figures["bytes"] == sum(tensor.nbytes for tensor in export.tensors.values())


def test_flipped_byte_is_found(export):
    path = export.folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    refused(export, "tensor hashes", "different: ")


def test_swapped_tensors_of_equal_shape_are_found_by_their_hashes(export):
    with torch.no_grad():
        export.tensors[NORMS[0]].mul_(2)
    export.hashes = write_weights(export.folder, expected_specs(export.config, torch.float32), export.tensors.items())
    export.change_file(lambda tensors: swap(tensors, *map(export_name, NORMS)))
    refused(export, "tensor hashes", f"different: {', '.join(NORMS)}")


def test_swapped_tensors_of_equal_shape_are_found_by_the_logits(export):
    """Where they were swapped before the writing, so that the hashes agree."""
    with torch.no_grad():
        export.tensors[NORMS[0]].mul_(2)
    swapped = dict(export.tensors)
    swap(swapped, *NORMS)
    export.hashes = write_weights(export.folder, expected_specs(export.config, torch.float32), swapped.items())
    refused(export, "logits", "differ by up to")


@pytest.mark.parametrize("key", ["image_newline", "language_model.lm_head.weight"])
@pytest.mark.parametrize("check", ["tensor hashes", "keys in transformers 4.57", "keys in transformers 5"])
def test_renamed_key_is_found_by_each_of_three_checks(export, monkeypatch, check, key):
    functions = {"tensor hashes": "_hashes", "keys in transformers 4.57": "_older_keys"}
    for name in functions.keys() - {check}:
        monkeypatch.setattr(check_export, functions[name], lambda *_: ("passed over", {}))
    export.change_file(lambda tensors: tensors.update({"other": tensors.pop(key)}))
    refused(export, check, "missing: ", "unexpected: other")


def test_keys_that_only_the_newer_major_knows_are_found(export, monkeypatch):
    """The names that transformers 5 itself writes, which 4.57 does not find."""
    monkeypatch.setattr(check_export, "_hashes", lambda *_: ("passed over", {}))

    def rename(tensors):
        for key in [key for key in tensors if key.startswith("vision_tower.")]:
            tensors[key.replace("vision_tower.vision_model.", "vision_tower.")] = tensors.pop(key)

    export.change_file(rename)
    refused(export, "keys in transformers 4.57", "missing: model.vision_tower.vision_model.embeddings")
    monkeypatch.setattr(check_export, "_older_keys", lambda *_: ("passed over", {}))
    assert export.prove()[2].done


def test_other_shape_is_found_by_both_majors(export, monkeypatch):
    monkeypatch.setattr(check_export, "_hashes", lambda *_: ("passed over", {}))
    export.change_file(lambda tensors: tensors.update({"image_newline": torch.zeros(3)}))
    refused(export, "keys in transformers 4.57", "different: model.image_newline")
    monkeypatch.setattr(check_export, "_older_keys", lambda *_: ("passed over", {}))
    refused(export, "keys in transformers 5", "mismatched", "image_newline")


def test_index_that_names_another_file_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "MAX_SHARD_BYTES", 100_000)
    export = make(tmp_path / "out")
    last = sorted(export.folder.glob("*.safetensors"))[-1].name
    export.change_json(weights.INDEX_FILE, lambda index: index["weight_map"].update({"image_newline": last}))
    refused(export, "keys in transformers 4.57", "index", "different: image_newline")


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("config.json", lambda c: c["text_config"].update(rope_theta=1e4), "rope_theta is 10000.0, not 1000000.0"),
        ("config.json", lambda c: c["text_config"].pop("rope_theta"), "rope_theta is None"),
        ("config.json", lambda c: c["text_config"]["rope_parameters"].update(rope_theta=5.0), "rope_parameters is"),
        ("config.json", lambda c: c["text_config"].update(rope_scaling={"factor": 2}), "rope_scaling is"),
        ("config.json", lambda c: c.update(image_token_index=5), "image_token_index is 5, not 259"),
        ("config.json", lambda c: c.update(video_token_index=5), "video_token_index is 5, not 260"),
        ("config.json", lambda c: c["text_config"].update(tie_word_embeddings=True), "tie_word_embeddings of the text"),
        ("config.json", lambda c: c["text_config"].update(vocab_size=260), "room for the tokenizer's tokens is False"),
        ("config.json", lambda c: c.update(dtype="bfloat16"), "dtype of the tensors"),
        ("generation_config.json", lambda c: c.update(eos_token_id=[1]), "end token"),
    ],
)
def test_file_that_disagrees_is_found(export, monkeypatch, name, change, told):
    for check in ("_older_keys", "_installed_keys"):
        monkeypatch.setattr(check_export, check, lambda *_: ("passed over", {}))
    export.change_json(name, change)
    refused(export, "config", told)


def test_missing_chat_template_is_found(export):
    (export.folder / "chat_template.jinja").unlink()
    refused(export, "config", "chat template")


def test_logits_are_left_out_with_the_reason_where_memory_does_not_allow(export, monkeypatch):
    monkeypatch.setattr(check_export, "available_memory", lambda: 10**9)
    *others, logits = export.prove()
    assert all(check.done for check in others)
    assert not logits.done
    assert logits.told == "needs 1.1 GB of host memory, 1.0 GB are left"


def test_logits_are_left_out_where_they_would_take_too_long(export, monkeypatch):
    """Worked case: 2 models x 2 operations x tokens x weights at 1e4 a second."""
    monkeypatch.setattr(check_export, "_speed", lambda _: 1e4)
    logits = export.prove()[-1]
    assert not logits.done
    tokens = check_export._prompt(export.folder)["input_ids"].numel()
    minutes = 4 * tokens * sum(tensor.numel() for tensor in export.tensors.values()) / 1e4 / 60
    assert minutes > 10
    assert logits.told == f"would take about {minutes:.0f} minutes on this machine's processor"


def test_hashing_keeps_no_shard_in_memory(export):
    """Each tensor is let go before the next is read."""
    config = tiny_config(byte_tokenizer(), tied=False)
    config.text_config.vocab_size = 2**19  # 134 MB for each of two tensors
    specs = expected_specs(config, torch.float32)
    hashes = write_weights(export.folder, specs, ((name, torch.ones(spec.shape)) for name, spec in specs.items()))
    restart_peak()
    before = peak_memory()
    check_export._hashes(export.folder, hashes)
    largest = 2**19 * 64 * 4
    assert peak_memory() - before < 1.5 * largest
