"""Run by the tests under another transformers: what it makes of exported folders, by its own classes alone.

usage: python load_runs.py TASK OUT; both files of torch.save. TASK: folder -> (inputs of the model, a text, turns).
"""

import re
import sys

import torch
import torchvision_operators  # noqa: F401
import transformers
from safetensors import safe_open
from transformers import AutoProcessor, AutoTokenizer, LlavaOnevisionConfig
from transformers import LlavaOnevisionForConditionalGeneration as OneVision


def load(folder, inputs, text, turns):
    model, info = OneVision.from_pretrained(folder, dtype="auto", output_loading_info=True, attn_implementation="sdpa")
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    processor, tokenizer = AutoProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    generation = model.generation_config
    return {
        "problems": {kind: sorted(map(str, info[f"{kind}_keys"])) for kind in ("missing", "unexpected", "mismatched")},
        "dtypes": {parameter.dtype for parameter in model.parameters()},
        "tied": model.lm_head.weight is model.get_input_embeddings().weight,
        "logits": logits,
        "ids": tokenizer(text)["input_ids"],
        "processor_ids": processor.tokenizer(text)["input_ids"],
        "rendered": processor.apply_chat_template(turns, add_generation_prompt=True),
        "ends": (generation.eos_token_id, generation.pad_token_id),
        "modules": on_meta(folder),
        "renamed": renamed(folder),
    }


def on_meta(folder):
    with torch.device("meta"):
        model = OneVision(LlavaOnevisionConfig.from_pretrained(folder))
    return [name for name, _ in model.named_parameters()]


def renamed(folder):
    """File key -> module name by the class's own table, which 4.57 has and 5.x has not."""
    names = {}
    with safe_open(f"{folder}/model.safetensors", framework="pt") as file:
        for key in file.keys():  # noqa: SIM118
            names[key] = key
            for pattern, replacement in getattr(OneVision, "_checkpoint_conversion_mapping", {}).items():
                name, count = re.subn(pattern, replacement, key)
                if count:
                    names[key] = name
                    break
    return names


def main(task_file, out_file):
    task = torch.load(task_file, weights_only=False)
    loaded = {folder: load(folder, *asked) for folder, asked in task.items()}
    torch.save({"version": transformers.__version__, "loaded": loaded}, out_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
