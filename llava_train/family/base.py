"""The interface of a model family, and the values that pass through it. No heavy library is loaded here.

What every family has alike is not here: three parts (vision tower, projector, language model) under the same names, a
`vision_feature_layer`, and the names of tensors in files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from llava_train.config.schema import ImageConfig
from llava_train.records.tags import MediumKind
from llava_train.shared.errors import Fault
from llava_train.text.base import TagPolicy, TemplateName

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from transformers import PretrainedConfig

# A transformers model of a family: `.model.vision_tower`, `.model.multi_modal_projector`, `.model.language_model`,
# `.lm_head`, `.config`.
HFModel = Any
LANGUAGE_MODELS = ("qwen2", "qwen3", "llama", "mistral")  # model types; Qwen2.5 is a qwen2, Vicuna a llama


@dataclass(frozen=True)
class VisualLayout:
    """How one image or video becomes tiles for the vision tower and tokens for the language model.

    Made only by a family's `Geometry`, from sizes alone. Data expands placeholders by `num_tokens`; the family's
    `Vision` packs features by the rest.
    """

    kind: str  # a name of the family's own, as "anyres" or "video"
    height: int  # of the original, in pixels
    width: int
    grid: tuple[int, int]  # tiles (rows, columns) of the canvas; of a video (frames, 1)
    num_tiles: int  # images that pass the vision tower
    num_tokens: int


class MediumShape(NamedTuple):
    """One image or video of a sample: pixels, and of a video the frames that are taken."""

    kind: MediumKind
    height: int
    width: int
    frames: int = 1


class MediumShapes(NamedTuple):
    """`MediumShape` of M media, an array [M] for each field."""

    is_video: np.ndarray  # bool
    heights: np.ndarray  # integers
    widths: np.ndarray
    frames: np.ndarray


class Geometry(Protocol):
    """From sizes to tiles and tokens, in one stage. Picklable; no torch."""

    @property
    def tile_size(self) -> int:
        """Pixels along a side of a tile, S."""
        ...

    @property
    def mode(self) -> str:
        """The value of `image.mode`."""
        ...

    @property
    def is_in_transformers(self) -> bool:
        """Whether transformers' own processor can make these tiles. If not, a checkpoint is an intermediate."""
        ...

    def layouts(self, media: Sequence[MediumShape]) -> list[VisualLayout]:
        """Of all media of one sample, in order."""
        ...

    def counts(self, owner: np.ndarray, media: MediumShapes) -> tuple[np.ndarray, np.ndarray]:
        """Tiles and tokens, int32 [M] each, as `layouts` gives them. owner: the sample of each medium, [M]."""
        ...

    def cut(self, image: Image, layout: VisualLayout, out: np.ndarray) -> None:
        """Fills `out`, uint8 [layout.num_tiles, 3, S, S], from an RGB image of the layout's size."""
        ...


class Vision(Protocol):
    """The visual half of the forward, around one transformers model. Its weights stay where they are."""

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 tiles [N, 3, S, S] -> projected features [N, P, hidden], on the projector's device."""
        ...

    def pack(self, features: torch.Tensor, layouts: Sequence[VisualLayout]) -> torch.Tensor:
        """Visual tokens [V, hidden] of all layouts in order. Raises ValueError where the tiles do not fit them."""
        ...

    def unused(self) -> torch.Tensor | None:
        """A scalar that depends on every parameter that `pack` may leave out; None where there is none."""
        ...


class Tower(NamedTuple):
    """How a tower's own checkpoint becomes the vision tower of a family."""

    model_class: Any  # of transformers
    config: Any
    dropped: str  # pattern of keys in its files that are left out


@dataclass(frozen=True)
class Released:
    """How the released checkpoints of a family prepare samples: it counts where a folder says nothing of its own."""

    mode: str
    template: TemplateName
    tag_policy: TagPolicy
    video: Mapping[str, Any]


class Family(Protocol):
    """One model family. What takes the content of a config.json needs no heavy library. A `geometry` is one of its own.

    title           its name in texts
    model_type      of config.json
    model_class     transformers' class of the model
    image_processor transformers' class that cuts images with Pillow
    settings_lines  Python that gives a base the settings of the adapter in `folder`, as its card shows it
    """

    title: str
    model_type: str
    model_class: str
    image_processor: str
    settings_lines: str
    released: Released

    def takes(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json is of this family."""
        ...

    def checkpoint_fault(self, path: str, config: Mapping[str, Any]) -> Fault | None:
        """What keeps a checkpoint that the family takes from a run. path: as the user gave it."""
        ...

    def tower_fault(self, path: str, config: Mapping[str, Any]) -> Fault | None:
        """What keeps a tower from being joined to a language model in this family."""
        ...

    def geometry(self, tile_size: int, patch_size: int, image: ImageConfig) -> Geometry:
        """Of a stage with these settings. Sizes: of the vision tower, in pixels."""
        ...

    def checkpoint_geometry(self, config: PretrainedConfig, mode: str) -> Geometry:
        """As transformers cuts images for a checkpoint with this config."""
        ...

    def with_processor(
        self, config: PretrainedConfig, images: Mapping[str, Any], processor: Mapping[str, Any]
    ) -> PretrainedConfig:
        """A config with the geometry of other processor files: preprocessor_config.json and processor_config.json."""
        ...

    def config_fields(self, geometry: Any) -> dict[str, Any]:
        """What config.json says of a geometry."""
        ...

    def processor_files(self, geometry: Any) -> dict[str, dict[str, Any]]:
        """File name -> content, in the form that transformers 4.57 and 5.x both load."""
        ...

    def vision(self, hf_model: HFModel, geometry: Any) -> Vision: ...

    def tower(self, config: Any) -> Tower:
        """Of a tower's own config."""
        ...

    def joined_config(self, text: Any, tower: Any, image_token_id: int, video_token_id: int) -> Any:
        """The config of a model that is made of parts."""
        ...

    def draw_new_weights(self, hf_model: HFModel, dtype: torch.dtype, seed: int) -> None:
        """Draws what no part brings: projector and the like, from `meta` to the CPU."""
        ...

    def tiny_config(
        self, text: Any, tower: Mapping[str, int], tile_size: int, patch_size: int, max_tiles: int, ids: tuple[int, int]
    ) -> Any:
        """The config of a small model for tests. tower: dimensions by their names. ids: of <image> and <video>."""
        ...
