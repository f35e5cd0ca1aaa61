"""As run_worker.py, but ZeRO-3 shards small parameters as well, which DeepSpeed keeps whole: all of these are small.

Before each run rank 0 prints what it holds of a quantised weight.
"""

import runpy
from pathlib import Path

from llava_train.train import trainer
from llava_train.train.engine import engine

configure, build = engine.deepspeed_config, trainer.Trainer.__init__


def shard_all(stage, world_size):
    config = configure(stage, world_size)
    if stage.zero.level == 3:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return config


def build_and_tell(trainer, *what):
    build(trainer, *what)
    layer = trainer.loaded.model.model.language_model.layers[0].mlp.down_proj.base_layer
    here = getattr(layer.weight, "ds_tensor", layer.weight)
    if trainer.ranks.is_first:
        print("HOLDS", type(layer).__name__, here.dtype, here.numel(), flush=True)


if __name__ == "__main__":
    engine.deepspeed_config, trainer.Trainer.__init__ = shard_all, build_and_tell
    runpy.run_path(str(Path(__file__).with_name("run_worker.py")), run_name="__main__")
