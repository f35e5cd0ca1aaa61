"""An adapter of the language model with a whole projector is the same model in transformers 4.57 and 5.x, by PEFT."""

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import torch
from transformers import LlavaOnevisionForConditionalGeneration as OneVision

from llava_train.config.schema import LearningRates, LoraConfig
from llava_train.model.loading.tiny_model import make_tiny
from llava_train.model.prepare.adapter import inject, peft_config, write_adapter
from llava_train.model.prepare.trained_parts import set_trainable

LORA = {"language_model": LoraConfig(rank=4, alpha=8)}


def test_an_adapter_and_its_projector_load(tmp_path, major_path):
    base = make_tiny(tmp_path / "base")
    model = OneVision.from_pretrained(base).eval()
    plain = deepcopy(model)
    inject(model, LORA, seed=0)
    set_trainable(model, LearningRates("frozen", 1e-3, 1e-3), LORA)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", peft_config(plain, LORA, str(base), ("multi_modal_projector",)), trained)

    inputs = an_image_and_words(model)
    torch.save(inputs, tmp_path / "inputs")
    with torch.no_grad():
        expected, without = model(**inputs).logits, plain(**inputs).logits
    assert (expected - without).abs().max() > 1e-2
    script = Path(__file__).with_name("load_adapters.py")
    words = [sys.executable, script, base, tmp_path / "adapter", tmp_path / "inputs", tmp_path / "out"]
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": major_path[1]}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    torch.testing.assert_close(torch.load(tmp_path / "out"), expected, rtol=0, atol=1e-5)


def an_image_and_words(model: OneVision) -> dict[str, torch.Tensor]:
    size = model.config.vision_config.image_size
    pixels, sizes = torch.rand(1, 2, 3, size, size), torch.tensor([[size, size]])
    features = model.get_image_features(pixels, image_sizes=sizes).pooler_output[0]
    ids = [1, *[model.config.image_token_index] * len(features), 5, 6, 7]
    return {"input_ids": torch.tensor([ids]), "pixel_values": pixels, "image_sizes": sizes}
