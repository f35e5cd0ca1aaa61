"""Run by the tests under another transformers: the tasks that its pages show for the family, on an exported folder.

usage: python load_tasks.py TASK OUT ATTENTION; both files of torch.save. TASK: folder, name -> messages, new tokens.
"""

import sys

import torch
import torchvision_operators  # noqa: F401
import transformers
from transformers import AutoProcessor, LlavaOnevisionForConditionalGeneration, pipeline


def prepare(processor, conversations):
    """In the spelling of each major: what is the processor's has a place of its own in 5.x."""
    padding = {"padding": True, "padding_side": "left"}
    if transformers.__version__ >= "5":
        padding = {"processor_kwargs": padding}
    return processor.apply_chat_template(
        conversations, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **padding
    )


def main(task_file, out_file, attention):
    folder, conversations, new_tokens = torch.load(task_file, weights_only=False)
    processor = AutoProcessor.from_pretrained(folder)
    load = {"dtype": "auto"} if attention == "sdpa" else {"dtype": torch.bfloat16, "device_map": "auto"}
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(folder, attn_implementation=attention, **load).eval()

    def answers(asked):
        inputs = prepare(processor, asked).to(model.device, model.dtype)
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens)
        return ids[:, inputs["input_ids"].shape[1] :].tolist()

    seen = {
        "version": transformers.__version__,
        "attention": model.config.text_config._attn_implementation,
        "alone": {name: answers([asked])[0] for name, asked in conversations.items()},
        "batch": dict(zip(conversations, answers(list(conversations.values())), strict=True)),
    }
    ask = pipeline("image-text-to-text", model=folder, processor=processor)
    turns = ask(text=conversations["turns"], max_new_tokens=new_tokens)
    seen["pipeline"] = turns[0]["generated_text"][-1]["content"]
    seen["texts"] = {name: processor.decode(ids, skip_special_tokens=True) for name, ids in seen["alone"].items()}
    torch.save(seen, out_file)


main(*sys.argv[1:])
