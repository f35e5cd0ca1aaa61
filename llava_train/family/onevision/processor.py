"""The processor files of an exported checkpoint, written by hand: transformers' own classes need torchvision."""

from __future__ import annotations

from typing import Any

from llava_train.family.onevision.geometry import OneVisionGeometry
from llava_train.records.tags import IMAGE_TAG, VIDEO_TAG


def aspect_ratio(geometry: OneVisionGeometry) -> str:
    """The name HF gives to anyres whose features are downscaled to about `max_tiles` tiles."""
    return f"anyres_max_{geometry.max_tiles}"


def processor_files(geometry: OneVisionGeometry) -> dict[str, dict[str, Any]]:
    """File name -> content, in the form that transformers 4.57 and 5.x both load."""
    pixels = {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": geometry.tile_size, "width": geometry.tile_size},
        "resample": 3,  # PIL's number for bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    return {
        "preprocessor_config.json": {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "processor_class": "LlavaOnevisionProcessor",
            **pixels,
            "do_pad": True,
            "image_grid_pinpoints": geometry.pinpoints(),
        },
        "video_preprocessor_config.json": {
            "video_processor_type": "LlavaOnevisionVideoProcessor",
            "processor_class": "LlavaOnevisionProcessor",
            **pixels,
        },
        "processor_config.json": {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": geometry.side**2,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": aspect_ratio(geometry),
            "image_token": IMAGE_TAG,
            "video_token": VIDEO_TAG,
        },
    }
