"""Run by the tests under another transformers: logits of an adapter on its base, by PEFT alone.

usage: python load_adapters.py BASE ADAPTER INPUTS OUT; the last two are files of torch.save.
"""

import sys

import torch
from load_runs import OneVision  # first: it makes torchvision importable
from peft import PeftModel

if __name__ == "__main__":
    base, adapter, inputs, out = sys.argv[1:]
    model = PeftModel.from_pretrained(OneVision.from_pretrained(base), adapter).eval()
    with torch.no_grad():
        torch.save(model(**torch.load(inputs)).logits, out)
