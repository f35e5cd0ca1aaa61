"""The command of the package with a GPU that is full: after some forwards large packs do not fit on the last rank.

usage: [torchrun ...] fit_worker.py MAX_TOKENS FORWARDS KEY=VALUE ...
"""

import os
import sys

import torch

from llava_train.cli.main import main
from llava_train.model.forward.packed_forward import PackedForward

if __name__ == "__main__":
    limit, spared = map(int, sys.argv[1:3])
    forward = PackedForward.forward

    def full(self, batch):
        global spared
        spared -= 1
        loss = forward(self, batch)
        is_last = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
        if is_last and spared < 0 and len(batch.input_ids) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss

    PackedForward.forward = full
    sys.exit(main(["+recipe=tiny", "~stages.projector", "data.num_workers=0", *sys.argv[3:]]))
