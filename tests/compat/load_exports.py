"""Run by the tests under another transformers: loads checkpoints as any program would, and writes what it saw.

usage: python load_exports.py TASK OUT; both files of torch.save.
"""

import contextlib
import io
import sys

import torch
import torchvision_operators  # noqa: F401
import transformers
from transformers import AutoProcessor, AutoTokenizer, LlavaOnevisionForConditionalGeneration, pipeline

NEW_TOKENS = 6


def load(folder, inputs, text):
    """Keys that did not fit, dtype, logits, ids of a text."""
    model, info = LlavaOnevisionForConditionalGeneration.from_pretrained(
        folder, dtype="auto", output_loading_info=True, attn_implementation="sdpa"
    )
    with torch.no_grad():
        logits = model.eval()(**inputs).logits
    problems = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    return {"problems": problems, "dtype": model.dtype, "logits": logits, "ids": ids}


def ask(folder, cases):
    """What the processor makes of each case: input ids and pixels; and the pipeline's answers."""
    processor = AutoProcessor.from_pretrained(folder)
    ask_pipeline = pipeline("image-text-to-text", model=folder, processor=processor)
    seen, answers = {}, {}
    for case in cases:
        messages = [{"role": "user", "content": case["content"]}]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        media = {"images": [case["images"]] if case["images"] else None, "videos": case["videos"] or None}
        inputs = processor(text=[text], return_tensors="pt", **{k: v for k, v in media.items() if v})
        seen[case["name"]] = dict(inputs)
        if not case["videos"]:
            images = iter(case["images"])
            content = [{**part, "image": next(images)} if part["type"] == "image" else part for part in case["content"]]
            turns = ask_pipeline(text=[{"role": "user", "content": content}], max_new_tokens=NEW_TOKENS)
            answers[case["name"]] = turns[0]["generated_text"][-1]["content"]
    return {"inputs": seen, "answers": answers}


def main(task_file, out_file):
    task = torch.load(task_file, weights_only=False)
    loaded = {folder: load(folder, inputs, task["texts"][folder]) for folder, inputs in task["folders"].items()}
    printed = []
    for lines in task["lines"]:
        with contextlib.redirect_stdout(io.StringIO()) as told:
            exec(lines, {})
        printed.append(told.getvalue())
    seen = {"version": transformers.__version__, "loaded": loaded, "printed": printed}
    torch.save(seen | ask(task["asked"], task["cases"]), out_file)


main(*sys.argv[1:])
