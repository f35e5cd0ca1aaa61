"""The fields of a run, as dataclasses: what a recipe, a part in `configs/` and the command line may set.

A field without a default must be set by the recipe. Types are plain: str, int, float, bool, Literal, unions of these,
lists, mappings by name, and nested dataclasses. `load.py` checks a configuration against them and collects every fault.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from llava_train.config.paths import Pathname

Precision = Literal["fp32", "bf16"]
LearningRate = float | Literal["frozen"]
VideoDecoder = Literal["pyav", "decord", "torchcodec"]
TooLong = Literal["error", "skip", "cut"]
OfCheckpoint = Literal["checkpoint"]  # as its generation_config.json says, else as transformers does


@dataclass
class RunConfig:
    name: str
    dir: Pathname  # each stage writes to dir/STAGE
    seed: int


@dataclass
class ModelConfig:
    """Where the first stage's weights come from: one checkpoint (`init`), or two parts and a new projector.

    A non-empty `init` wins over the parts, so that `model.init=DIR` on the command line replaces a recipe's start.
    """

    init: Pathname  # folder or hub name of a Hugging Face checkpoint; "" = start from the parts
    language_model: Pathname  # folder or hub name; "" where init is set
    vision_tower: Pathname
    attention: Literal["auto", "flash_attn", "varlen", "sdpa"]
    compile: bool = False  # layers and loss by torch.compile: the first steps are slow. At ZeRO 3 gates and loss alone
    run_suffix: str = (
        ""  # of the run names in our recipes, so that sizes do not share a folder; the default size has none
    )


@dataclass
class DataConfig:
    file: Pathname  # in place of every stage's mixture: CSV, JSON, JSONL, a folder or mixture YAML; "" = the recipe's
    root: Pathname  # folder that the mixtures' files and media are relative to
    on_error: Literal["error", "skip"]
    allow_missing_sources: bool  # leave out sources whose file is not on disk, by name, instead of failing
    num_workers: int  # processes per rank that prepare batches beside the training one; at most one per core
    decode_timeout: float  # seconds that one video may take to decode before it counts as unreadable
    max_pixels: int  # an image with more pixels is refused
    max_frames: int  # a video file with more frames is refused
    max_media: int  # a sample with more images and videos is refused
    too_long: TooLong  # of a sample beyond max_length; cut: turns after its last medium go
    sizes: Literal["files", "records"]  # of images; records: from `width` and `height` of a record that has them
    allow_outside_root: bool  # media of records by absolute paths, or by .. to outside of the root
    cache: Pathname  # folder of the indexes; "" = `index` beside the run's folder
    video_decoder: VideoDecoder = "pyav"  # of files; all give the same frames. decord, torchcodec: where installed


@dataclass
class LearningRates:
    vision_tower: LearningRate
    projector: LearningRate
    language_model: LearningRate


@dataclass
class OptimizerConfig:
    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float
    max_grad_norm: float


@dataclass
class ScheduleConfig:
    kind: Literal["cosine", "linear", "constant"]
    warmup_ratio: float  # of the optimiser steps, rounded up; at least one step comes after it


@dataclass
class ImageConfig:
    """How images are cut. mode checkpoint: as the checkpoint that the stage starts from is asked."""

    mode: Literal["square", "anyres", "checkpoint"]
    grid: list[list[int]]  # candidate canvases as [rows, columns] of tiles; anyres alone, else []
    max_tiles: int  # features are downscaled to about this many tiles (anyres_max_N); square: 1, checkpoint: 0


@dataclass
class VideoConfig:
    fps: float  # frames sampled per second of video
    max_frames: int


@dataclass
class PackConfig:
    """Budget of one micro-batch of one rank, and the unit of a step.

    samples: a step is the stage's global_batch_size samples; packs change speed and memory, never the mathematics.
    tokens: a step is `per_step` packs over all ranks, full and of equal cost.
    """

    max_tokens: int
    max_tiles: int
    unit: Literal["samples", "tokens"] = "samples"
    per_step: int = 0  # packs of a step over all ranks; a multiple of their number. tokens alone
    window: int = 1024  # packs that are formed together, from the samples drawn next. tokens alone


@dataclass
class ZeroConfig:
    level: Literal[0, 1, 2, 3]
    offload_optimizer: bool
    offload_parameters: bool


@dataclass
class CheckpointConfig:
    every: int  # optimiser steps between checkpoints; 0 = only at the end of the stage
    keep: int  # the last N stay
    keep_every: int  # those of steps divisible by this stay as well; 0 = none
    # The one with the lowest stays as well. loss: mean since the checkpoint before. held_out_loss: each new minimum is
    # saved, and the stage's `hf` comes from the last of them.
    best: Literal["none", "loss", "held_out_loss"]
    background: bool  # write while training goes on, from a copy in host memory (12 bytes a trained parameter)
    export_every: int  # optimiser steps between `hf-STEP` folders beside the `hf` of the end; 0 = none


@dataclass
class LoraConfig:
    """Low-rank adapters in the linear layers of one part, whose own weights are then frozen (Hu et al. 2021)."""

    rank: int
    alpha: float  # the update is scaled by alpha / rank, with rslora by alpha / sqrt(rank)
    targets: str | list[str] = (
        "all"  # ends of module names within the part, such as [q_proj, v_proj]; all = every linear
    )
    dropout: float = 0.0  # of what the adapters read
    rslora: bool = False
    dora: bool = False  # adapt the direction of a weight, and train its norm by column apart (Liu et al. 2024)
    init: str = "default"  # of A and B, as PEFT names it in init_lora_weights; default: B is zero


@dataclass
class StageConfig:
    mixture: Pathname  # name of a file in data/mixtures, or path of a mixture YAML
    learning_rate: LearningRates
    epochs: float
    max_steps: int  # ends the stage early; 0 = by epochs alone
    global_batch_size: int  # samples per optimiser step, over all ranks
    schedule: ScheduleConfig
    optimizer: OptimizerConfig
    template: Literal["plain", "qwen", "vicuna", "checkpoint"]  # checkpoint: the chat template of the stage's start
    label_rule: Literal["clean", "original"]
    tag_policy: Literal["front", "keep"]
    max_length: int  # tokens of one sample, visual ones included
    image: ImageConfig
    video: VideoConfig
    pack: PackConfig
    precision: Precision
    zero: ZeroConfig
    gradient_checkpointing: bool | Literal["auto"]  # auto: of as few layers as the memory of a rank allows
    checkpoint: CheckpointConfig
    lora: dict[str, LoraConfig] = field(default_factory=dict)  # by part; its learning rate is the adapters' then
    load_in: Literal["none", "4bit", "8bit"] = "none"  # of the language model's frozen linear layers, by bitsandbytes

    @property
    def step_size(self) -> str:
        """What a step is, in words."""
        by_tokens = self.pack.unit == "tokens"
        return f"{self.pack.per_step} packs" if by_tokens else f"{self.global_batch_size} samples"


@dataclass
class TaskConfig:
    """Held-out questions: a LLaVA JSON/JSONL file whose last turn is the reference answer."""

    file: Pathname  # relative to data.root
    limit: int  # first N records; 0 = all


@dataclass
class EvaluationConfig:
    """What is asked of each stage's export, and the loss that is measured while a stage trains."""

    tasks: dict[str, TaskConfig]
    batch_size: int
    max_new_tokens: int
    every: int = 0  # optimiser steps between held-out losses, beside one before the first and one at the end; 0 = none
    file: Pathname = ""  # of the held-out samples, as data.file; "" = `held_out` of each stage's own
    held_out: int | float = 0  # samples of a stage that it does not train on: from 1 a number, below a share
    patience: int = 0  # held-out losses without a new minimum that end a stage; 0 = never


@dataclass
class TrainConfig:
    """How ranks train together; nothing here changes what is learned."""

    fit: bool = False  # where the GPU cannot hold a pack, lower the budgets and go on; steps of samples alone
    max_wait: float = 600  # seconds before a step that ranks wait for one; 10 times the longest step where that is more


@dataclass
class LogConfig:
    every: int  # optimiser steps between lines of the JSONL log
    trackers: list[Literal["wandb", "tensorboard"]]


@dataclass
class PreviewConfig:
    format: Literal["text", "jsonl", "html"] = "text"
    count: int = 4  # samples per stage, on the page per source of it; 0 = all
    out: Pathname = ""  # "" = the terminal; of the page preview.html in the run's folder
    stage: str = ""  # "" = every stage


@dataclass
class PlanConfig:
    """`python -m llava_train plan`: what the stages will cost, without a GPU."""

    stage: str = ""  # "" = every stage
    world_size: int = 8  # ranks
    simulate: int = 0  # samples drawn from the published mixture's shares in place of the stage's own; 0 = its own
    gpu: str = "h100"  # whose memory and peak bf16 FLOPs are assumed
    mfu: float = 0.4  # share of that peak that the step reaches
    network: float = 50  # GB a second that each GPU sends to other nodes


@dataclass
class BenchConfig:
    """`python -m llava_train bench`: the speed of a stage's step on this machine."""

    stage: str = ""  # "" = the last
    steps: int = 20  # that are measured
    warmup: int = 3  # steps before them
    profile: str = ""  # a file for torch.profiler's trace of a further step; beside it .txt, its costliest operators


@dataclass
class Config:
    run: RunConfig
    model: ModelConfig
    data: DataConfig
    stages: dict[str, StageConfig]  # run in this order, each from the one before
    evaluation: EvaluationConfig
    log: LogConfig
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    bench: BenchConfig = field(default_factory=BenchConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass
class GenerateModel:
    init: Pathname  # folder or hub name of a Hugging Face checkpoint


@dataclass
class GenerateConfig:
    """`python -m llava_train generate`: answers to one prompt, to a file of prompts, or in a chat."""

    model: GenerateModel
    prompt: str = ""
    images: list[Pathname] = field(default_factory=list)
    videos: list[Pathname] = field(default_factory=list)
    video: Pathname = ""  # the same as videos=[...] with one entry
    file: Pathname = ""  # JSONL or JSON, a prompt each: `prompt` or `conversations`, and `id`, `images`, `videos`
    root: Pathname = ""  # folder that its media are relative to; "" = the file's own
    out: Pathname = ""  # JSONL, an answer each; one that holds some is continued
    batch_size: int = 8  # prompts of the file that are answered at a time
    on_error: Literal["error", "skip"] = "error"  # of a prompt of the file that cannot be asked
    chat: bool = False  # in the terminal
    system: str = ""  # "" = the checkpoint's default
    adapter: Pathname = ""  # folder of a PEFT adapter of `model.init`
    load_in: Literal["none", "4bit", "8bit"] = "none"  # of the language model's linear layers, by bitsandbytes
    device_map: Literal["none", "auto"] = "none"  # auto: over all GPUs, then host memory and disk, by accelerate
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    seed: int = 0  # of sampled answers
    max_new_tokens: int = 256
    min_new_tokens: int | OfCheckpoint = "checkpoint"
    do_sample: bool | OfCheckpoint = "checkpoint"
    temperature: float | OfCheckpoint = "checkpoint"
    top_p: float | OfCheckpoint = "checkpoint"
    top_k: int | OfCheckpoint = "checkpoint"
    repetition_penalty: float | OfCheckpoint = "checkpoint"
    num_beams: int | OfCheckpoint = "checkpoint"


@dataclass
class EvaluateData:
    file: Pathname  # as training reads it; the last turn of a record is the reference, or `answers` holds some
    root: Pathname = ""  # folder that its files and media are relative to; "" = the file's own


@dataclass
class EvaluateConfig:
    """`python -m llava_train evaluate`: answers to held-out questions, scored, with the loss of the references."""

    model: GenerateModel
    data: EvaluateData
    adapter: Pathname = ""  # folder of a PEFT adapter of `model.init`
    load_in: Literal["none", "4bit", "8bit"] = "none"  # of the language model's linear layers, by bitsandbytes
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    score: Literal["auto", "exact", "any_of", "choice", "number"] = "auto"  # auto: by each record's `type`, or inferred
    tolerance: float = 0.05  # share of the reference by which a number may be off
    limit: int = 0  # first N records of each source; 0 = all
    batch_size: int = 8
    max_new_tokens: int = 64
    seed: int = 0  # of what a mixture samples, and of intervals
    shown: int = 300  # questions on the page, errors first
    out: Pathname = ""  # folder; one of the same settings is continued. "" = evaluations/FILE-HASH


@dataclass
class CompareConfig:
    """`python -m llava_train compare`: what `evaluate` found of the same questions, before and after."""

    before: Pathname  # folder that `evaluate` wrote
    after: list[Pathname] = field(default_factory=list)  # others


@dataclass
class ConvertConfig:
    """`python -m llava_train convert`: a checkpoint of the original trainer, as a Hugging Face folder."""

    original: Pathname  # folder: a whole model, mm_projector.bin, or a LoRA adapter
    out: Pathname  # new folder
    base: Pathname = ""  # folder of the model it was trained on, where the original is not whole
    vision_tower: Pathname = ""  # SigLIP folder, where neither holds the tower


@dataclass
class ExportRun:
    dir: Pathname  # folder of a run


@dataclass
class StatusConfig:
    """`python -m llava_train status`: how far a run is, how fast, what stopped it, what it saved last."""

    run: ExportRun


@dataclass
class ExportConfig:
    """`python -m llava_train export`: a Hugging Face folder from a step checkpoint of a run.

    Of a stage with adapters it is the adapter, as PEFT reads it; with `merge` the whole model with it merged.
    """

    run: ExportRun
    out: Pathname  # folder to write; one that holds an export is replaced
    stage: str = ""  # "" = the last that has a checkpoint
    step: int = 0  # 0 = the latest
    merge: bool = False
