"""What all contenders share: to take turns, the samples, and Hugging Face batches of them. Needs torch alone.

A contender lives as long as the comparison. It reads a line with a number of steps from its standard input, takes them,
and answers with a line of JSON: seconds by the clock and of its processors, tokens, the loss of each step, its memory
at the highest. In between it waits for the next line and uses no processor.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

# input_ids, labels int64 [L]; images, videos: of each its tiles or frames uint8 [N, 3, S, S]; sizes: height, width of
# each image
Sample = dict[str, Any]
LEARNING_RATE = 1e-4
IGNORE_INDEX = -100


class Turns:
    def __init__(self) -> None:
        """What libraries print goes to standard error from here on."""
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._left, self._losses, self._tokens, self._began = 0, [], 0, (0.0, 0.0)

    def wait(self) -> None:
        """For the next turn. Ends the process where there is none."""
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        self._left, self._losses, self._tokens, self._began = int(line), [], 0, clocks()

    def done(self, loss: float, tokens: int) -> None:
        """After each step; waits where the turn is over."""
        self._losses.append(loss)
        self._tokens += tokens
        self._left -= 1
        if not self._left:
            seconds, processor = (now - then for now, then in zip(clocks(), self._began, strict=True))
            told = {"seconds": seconds, "processor": processor, "tokens": self._tokens, "losses": self._losses}
            self._answers.write(json.dumps(told | {"memory": peak_memory()}) + "\n")
            self.wait()


def clocks() -> tuple[float, float]:
    """Seconds by the clock, when a GPU is done, and of the processors that this process has used."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def peak_memory() -> int:
    """Bytes that this process held at the most, of a GPU where it uses one."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def settings() -> dict[str, Any]:
    """Of this contender: folder (of the model and samples), precision, way."""
    return json.loads(sys.argv[1])


def read_steps(folder: str) -> list[list[Sample]]:
    return torch.load(Path(folder) / "steps.pt", weights_only=True)


def endless(steps: list[Any]) -> Iterator[Any]:
    return cycle(steps)


def num_tokens(samples: list[Sample]) -> int:
    return sum(len(sample["input_ids"]) for sample in samples)


def num_supervised(samples: list[Sample]) -> int:
    return sum(int((sample["labels"] != IGNORE_INDEX).sum()) for sample in samples)


def hf_batch(samples: list[Sample], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Padded on the right, as transformers' LlavaOnevision takes it; tiles padded to the most of an image. On the host,
    pinned where there is a GPU."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = [sample["input_ids"] for sample in samples]
    batch = {
        "input_ids": pad(ids, batch_first=True),
        "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad([sample["labels"] for sample in samples], batch_first=True, padding_value=IGNORE_INDEX),
    }
    for kind, name in (("images", "pixel_values"), ("videos", "pixel_values_videos")):
        pixels = [((one.float() / 255 - 0.5) / 0.5).to(dtype) for sample in samples for one in sample[kind]]
        if pixels:
            batch[name] = pad(pixels, batch_first=True)
    if "pixel_values" in batch:
        batch["image_sizes"] = torch.tensor([size for sample in samples for size in sample["sizes"]])
        batch["batch_num_images"] = torch.tensor([len(sample["images"]) for sample in samples])
    return {name: tensor.pin_memory() for name, tensor in batch.items()} if torch.cuda.is_available() else batch
