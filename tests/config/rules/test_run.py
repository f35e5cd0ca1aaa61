"""Each cross-field rule: the setting that breaks it, the key that is named, and a remedy that mends it."""

from copy import deepcopy
from importlib.machinery import ModuleSpec

import pytest

from llava_train.config.load import collect, load
from llava_train.config.rules import run
from llava_train.config.rules.run import judge
from llava_train.config.schema import Config, ImageConfig, ModelConfig


@pytest.fixture(scope="module")
def sound() -> Config:
    return load(["+recipe=tiny"])


def broken(config: Config, **values: object) -> Config:
    """A copy with attributes set; `__` stands for a dot, `s` and `p` for the two stages."""
    changed = deepcopy(config)
    for path, value in values.items():
        *parents, last = path.split("__")
        node = changed
        if parents and parents[0] in ("s", "p"):
            node = changed.stages["onevision" if parents.pop(0) == "s" else "projector"]
        for parent in parents:
            node = getattr(node, parent)
        setattr(node, last, value)
    return changed


STAGE = "stages.onevision"
MEASURED = {"evaluation__every": 2, "evaluation__held_out": 0.05}
CASES = [
    ({"plan__stage": "onevison"}, "plan.stage", "did you mean onevision?"),
    ({"plan__gpu": "h100x"}, "plan.gpu", "known: a100, "),
    ({"plan__world_size": 0}, "plan.world_size", "allowed: >= 1"),
    ({"plan__simulate": -1}, "plan.simulate", "allowed: >= 0"),
    ({"bench__stage": "onevison"}, "bench.stage", "did you mean onevision?"),
    ({"bench__steps": 0}, "bench.steps", "allowed: >= 1"),
    ({"bench__warmup": -1}, "bench.warmup", "allowed: >= 0"),
    ({"plan__mfu": 0.0}, "plan.mfu", "allowed: > 0"),
    ({"plan__mfu": 1.1}, "plan.mfu", "<= 1"),
    ({"plan__network": 0.0}, "plan.network", "> 0"),
    ({"train__max_wait": 0.0}, "train.max_wait", "> 0"),
    (
        {"train__fit": True, "s__pack__unit": "tokens", "s__pack__per_step": 2},
        "train.fit",
        f"{STAGE}.pack.unit=samples",
    ),
    ({"data__max_frames": 0}, "data.max_frames", "allowed: > 0"),
    ({"data__max_media": 0}, "data.max_media", "allowed: > 0"),
    ({"s__pack__unit": "tokens"}, f"{STAGE}.pack.per_step", f"set {STAGE}.pack.per_step=N"),
    ({"s__pack__per_step": 8}, f"{STAGE}.pack.per_step", f"set {STAGE}.pack.per_step=0 or {STAGE}.pack.unit=tokens"),
    ({"s__pack__window": 0}, f"{STAGE}.pack.window", "allowed: >= 1"),
    ({"run__name": "a/b"}, "run.name", "no /, no leading dot"),
    ({"run__name": ""}, "run.name", "not empty"),
    ({"run__name": ".."}, "run.name", "no leading dot"),
    ({"run__dir": ""}, "run.dir", "leave it out for runs/NAME"),
    ({"run__seed": -1}, "run.seed", "allowed: >= 0"),
    ({"model__init": "", "model__language_model": "l"}, "model.vision_tower", "set model.init=DIR_OR_HUB_NAME"),
    ({"model__init": "", "model__vision_tower": "v"}, "model.language_model", "set model.init=DIR_OR_HUB_NAME"),
    ({"model__attention": "varlen", "s__precision": "bf16"}, "model.attention", "stages.projector.precision=bf16"),
    ({"model__attention": "flash_attn", "p__precision": "bf16"}, "model.attention", "model.attention=auto"),
    ({"data__file": "a.txt"}, "data.file", ".json .jsonl"),
    ({"data__video_decoder": "torchcodec"}, "data.video_decoder", "install llava_train[torchcodec]"),
    ({"data__root": ""}, "data.root", ". for the current one"),
    ({"data__num_workers": -1}, "data.num_workers", ">= 0"),
    ({"data__decode_timeout": 0.0}, "data.decode_timeout", "> 0"),
    ({"data__max_pixels": 0}, "data.max_pixels", "> 0"),
    ({"evaluation__batch_size": 0}, "evaluation.batch_size", ">= 1"),
    ({"evaluation__max_new_tokens": 0}, "evaluation.max_new_tokens", ">= 1"),
    ({"evaluation__every": -1}, "evaluation.every", ">= 0"),
    ({"evaluation__held_out": -0.1}, "evaluation.held_out", ">= 0"),
    ({"evaluation__patience": -1}, "evaluation.patience", ">= 0"),
    ({"evaluation__every": 2, "evaluation__file": "a.txt"}, "evaluation.file", ".json .jsonl"),
    ({"evaluation__every": 2}, "evaluation.every", "evaluation.held_out=0.05"),
    ({**MEASURED, "evaluation__file": "a.json"}, "evaluation.held_out", "set one of them"),
    ({**MEASURED, "evaluation__held_out": 2.5}, "evaluation.held_out", "a share below 1"),
    ({"evaluation__held_out": 5}, "evaluation.held_out", "evaluation.every=N"),
    ({"evaluation__file": "a.json"}, "evaluation.file", "evaluation.every=N"),
    ({"evaluation__patience": 3}, "evaluation.patience", "evaluation.every=N"),
    ({"s__checkpoint__best": "held_out_loss"}, f"{STAGE}.checkpoint.best", "evaluation.held_out=0.05"),
    ({"log__every": 0}, "log.every", ">= 1"),
    ({"log__trackers": ["wandb", "wandb"]}, "log.trackers", "name each once"),
    ({"preview__count": -1}, "preview.count", ">= 0"),
    ({"preview__stage": "onevison"}, "preview.stage", "did you mean onevision?"),
    ({"preview__stage": "x"}, "preview.stage", "known: projector, onevision"),
    ({"stages": {}}, "stages", "+recipe=NAME"),
    ({"p__learning_rate__projector": "frozen"}, "stages.projector.learning_rate", "projector=1e-3"),
    ({"s__learning_rate__vision_tower": 0.0}, f"{STAGE}.learning_rate.vision_tower", "or frozen"),
    ({"s__learning_rate__projector": -1.0}, f"{STAGE}.learning_rate.projector", "> 0"),
    ({"s__learning_rate__language_model": 0.0}, f"{STAGE}.learning_rate.language_model", "> 0"),
    ({"s__epochs": 0.0, "s__max_steps": 0}, f"{STAGE}.epochs", f"set {STAGE}.epochs or {STAGE}.max_steps"),
    ({"s__epochs": -1.0}, f"{STAGE}.epochs", ">= 0"),
    ({"s__max_steps": -1}, f"{STAGE}.max_steps", ">= 0"),
    ({"s__global_batch_size": 0}, f"{STAGE}.global_batch_size", ">= 1"),
    ({"s__schedule__warmup_ratio": 1.0}, f"{STAGE}.schedule.warmup_ratio", "< 1"),
    ({"s__schedule__warmup_ratio": -0.1}, f"{STAGE}.schedule.warmup_ratio", ">= 0"),
    ({"s__optimizer__weight_decay": -1.0}, f"{STAGE}.optimizer.weight_decay", ">= 0"),
    ({"s__optimizer__beta1": 1.0}, f"{STAGE}.optimizer.beta1", "< 1"),
    ({"s__optimizer__beta2": -0.1}, f"{STAGE}.optimizer.beta2", ">= 0"),
    ({"s__optimizer__epsilon": 0.0}, f"{STAGE}.optimizer.epsilon", "> 0"),
    ({"s__optimizer__max_grad_norm": 0.0}, f"{STAGE}.optimizer.max_grad_norm", "> 0"),
    ({"s__max_length": 1}, f"{STAGE}.max_length", ">= 2"),
    ({"s__video__fps": 0.0}, f"{STAGE}.video.fps", "> 0"),
    ({"s__video__max_frames": 0}, f"{STAGE}.video.max_frames", ">= 1"),
    ({"s__pack__max_tokens": 0}, f"{STAGE}.pack.max_tokens", ">= 1"),
    ({"s__pack__max_tiles": 0}, f"{STAGE}.pack.max_tiles", ">= 1"),
    ({"s__checkpoint__every": -1}, f"{STAGE}.checkpoint.every", ">= 0"),
    ({"s__checkpoint__keep": 0}, f"{STAGE}.checkpoint.keep", ">= 1"),
    ({"s__checkpoint__keep_every": -1}, f"{STAGE}.checkpoint.keep_every", ">= 0"),
    ({"s__checkpoint__export_every": -1}, f"{STAGE}.checkpoint.export_every", ">= 0"),
    ({"p__zero__offload_optimizer": True}, "stages.projector.zero.offload_optimizer", "zero.level=2 or 3"),
    ({"s__zero__offload_parameters": True}, f"{STAGE}.zero.offload_parameters", "zero.level=3"),
    ({"p__image__grid": [[1, 1]]}, "stages.projector.image.grid", "image.grid=[]"),
    ({"p__image__max_tiles": 9}, "stages.projector.image.max_tiles", "max_tiles=1"),
    ({"s__image__max_tiles": 0}, f"{STAGE}.image.max_tiles", ">= 1"),
    ({"s__image__grid": []}, f"{STAGE}.image.grid", "[[1,2],[2,1],[2,2]]"),
    (
        {"s__image__mode": "checkpoint", "s__image__max_tiles": 0},
        f"{STAGE}.image.grid",
        f"or {STAGE}.image.mode=anyres",
    ),
    ({"s__image__mode": "checkpoint", "s__image__grid": []}, f"{STAGE}.image.max_tiles", "image.max_tiles=0"),
    (
        {"p__image": ImageConfig("checkpoint", [], 0), "model": ModelConfig("", "a", "b", "auto")},
        "stages.projector.image.mode",
        "model.init=DIR_OR_HUB_NAME",
    ),
    ({"s__image__grid": [[1]]}, f"{STAGE}.image.grid", "[rows, columns]"),
    ({"s__image__grid": [[0, 1]]}, f"{STAGE}.image.grid", "both >= 1"),
    ({"s__image__grid": [[1, 2], [1, 2]]}, f"{STAGE}.image.grid", "once"),
    ({"s__template": "plain", "s__label_rule": "original"}, f"{STAGE}.label_rule", "template=qwen"),
    ({"s__template": "plain", "s__tag_policy": "keep"}, f"{STAGE}.tag_policy", "tag_policy=front"),
    ({"s__template": "vicuna", "s__label_rule": "original"}, f"{STAGE}.label_rule", "label_rule=clean"),
    ({"s__template": "checkpoint", "s__label_rule": "original"}, f"{STAGE}.label_rule", "label_rule=clean"),
    (
        {"p__template": "checkpoint", "model__init": "", "model__language_model": "a", "model__vision_tower": "b"},
        "stages.projector.template",
        "model.init=DIR_OR_HUB_NAME",
    ),
    ({"s__load_in": "4bit"}, f"{STAGE}.load_in", f"+{STAGE}.lora.language_model={{rank:16,alpha:32}}"),
    (
        {"s__load_in": "8bit", "s__zero__level": 3, "s__learning_rate__language_model": "frozen"},
        f"{STAGE}.load_in",
        "load_in=4bit",
    ),
    (
        {"p__load_in": "4bit", "model__init": "", "model__language_model": "a", "model__vision_tower": "b"},
        "stages.projector.load_in",
        "model.init=DIR_OR_HUB_NAME",
    ),
]


@pytest.mark.parametrize(("values", "key", "remedy"), CASES)
def test_a_broken_rule_names_its_key_and_remedy(sound, values, key, remedy):
    faults = judge(broken(sound, **values), complete=True)
    assert [fault.key for fault in faults] == [key]
    assert remedy in faults[0].remedy


def test_every_bound_and_rule_has_a_case(sound):
    named = {key for _, key, _ in CASES}
    bounds = [key for key, *_ in run.CONFIG_BOUNDS] + [f"{STAGE}.{key}" for key, *_ in run.STAGE_BOUNDS]
    assert bounds
    assert set(bounds) <= named


def test_stage_and_task_names_are_judged(sound):
    config = broken(sound, stages={"a/b": sound.stages["onevision"]})
    assert [fault.key for fault in judge(config, complete=True)] == ["stages.a/b"]
    _, faults = collect(["+recipe=tiny", "+evaluation.tasks.a={file: x.txt, limit: -1}"])
    assert [fault.key for fault in faults] == ["evaluation.tasks.a.file", "evaluation.tasks.a.limit"]


@pytest.mark.parametrize("level", [1, 2, 3])
def test_offload_of_the_optimizer_fits_every_sharded_level(sound, level):
    assert not judge(broken(sound, s__zero__level=level, s__zero__offload_optimizer=True), complete=True)


def test_a_rule_is_judged_beside_a_fault_elsewhere_and_passed_over_where_its_own_field_has_one():
    zero = "stages.onevision.zero"
    _, faults = collect(["+recipe=tiny", f"{zero}.level=9", f"{zero}.offload_parameters=true", "log.every=0"])
    assert [fault.key for fault in faults] == ["stages.onevision.zero.level", "log.every"]


@pytest.mark.parametrize(
    ("tracker", "remedy"),
    [("wandb", "pip install wandb, or "), ("tensorboard", "pip install 'llava_train[tensorboard]', or ")],
)
@pytest.mark.parametrize("spec", [None, ModuleSpec("a_folder", None)])
def test_a_tracker_that_is_not_installed_is_a_fault(sound, monkeypatch, tracker, remedy, spec):
    monkeypatch.setattr(run, "find_spec", lambda name: spec)
    [fault] = judge(broken(sound, log__trackers=[tracker]), complete=True)
    assert (fault.key, fault.problem) == ("log.trackers", f"{tracker} is not installed")
    assert fault.remedy == remedy + "leave it out: log.trackers=[]"
