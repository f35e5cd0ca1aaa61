"""The training forward of LLaVA-OneVision: a `PackedBatch` in, the summed cross-entropy of its supervised tokens out.

It calls the submodules of the untouched transformers class. All tiles and frames go through the vision tower in one
call, and every forward runs the same modules whatever the batch holds, as ZeRO-3 needs on every rank.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import nn
from transformers import LlavaOnevisionForConditionalGeneration

from llava_train.batch.packed import PackedBatch
from llava_train.family.onevision.features import pack_features
from llava_train.family.onevision.geometry import Geometry
from llava_train.model.forward.attention import PACKED, TILES, AttentionChoice, Documents, choose_kernel, register
from llava_train.model.forward.cpu_bf16 import widen_products
from llava_train.model.forward.fused import fuse_norms
from llava_train.model.forward.loss import make_loss


class PackedForward(nn.Module):
    """`hf_model` on packed rows.

    hf_model   its weights are trained in place; its attention is set to ours
    geometry   how visuals become tokens; must be the one the batches were made with
    device     where batches are moved to; None: they are there
    compiled   whether the loss is compiled
    """

    def __init__(
        self,
        hf_model: LlavaOnevisionForConditionalGeneration,
        geometry: Geometry,
        attention: AttentionChoice = "auto",
        device: torch.device | None = None,
        compiled: bool = False,
    ):
        super().__init__()
        register()
        self.loss = make_loss(hf_model.lm_head, compiled)
        hf_model.set_attn_implementation({"text_config": PACKED, "vision_config": TILES})
        fuse_norms(hf_model)
        widen_products(hf_model, device or device_of(hf_model))
        self.hf_model = hf_model
        self.geometry = geometry
        self.attention: AttentionChoice = attention
        self.device = device

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Summed cross-entropy over the batch's supervised tokens, fp32 scalar, with a graph even if there are none."""
        batch = self.placed(batch)
        states = self.hidden_states(batch)[batch.supervised - 1]  # state t predicts label t + 1
        return self.loss(states, batch.labels[batch.supervised])

    def placed(self, batch: PackedBatch) -> PackedBatch:
        """The batch on the device. ValueError, with the sample, where its placeholders are not those of its visuals.

        They are looked at on the host, where the batch comes from: the GPU would make it wait.
        """
        _check_places(batch)
        return batch if self.device is None else batch.to(self.device)

    def hidden_states(self, batch: PackedBatch) -> torch.Tensor:
        """Last hidden state [T, hidden] of the language model, of a batch that is in its place."""
        embeddings = self.embed(batch)
        kernel = choose_kernel(self.attention, embeddings.device, embeddings.dtype)
        outputs = self.hf_model.model.language_model(
            inputs_embeds=embeddings[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            documents=Documents(batch.cu_seqlens, batch.max_seqlen, kernel),
        )
        return outputs.last_hidden_state[0]

    def embed(self, batch: PackedBatch) -> torch.Tensor:
        """Token embeddings [T, hidden] with the visual tokens in their places.

        A batch without tiles sends a dummy tile through tower and projector and adds its features and the newline with
        zero weight, so that the gradients of those parameters exist and are zero.
        """
        model = self.hf_model.model
        embeddings = model.language_model.get_input_embeddings()(batch.input_ids)
        features = model.multi_modal_projector(self.tower_features(batch.pixel_values)).to(embeddings.device)
        newline = model.image_newline.to(embeddings.device)
        if not batch.visuals:
            unused = features.sum() + newline.sum()
            return embeddings + 0.0 * unused.to(embeddings.dtype)
        visual = pack_features(features, batch.visuals, self.geometry, newline)
        visual = visual + 0.0 * newline  # touched even where no layout of the batch has a newline
        return embeddings.index_copy(0, batch.visual_positions.to(embeddings.device), visual.to(embeddings.dtype))

    def tower_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """uint8 tiles [N, 3, S, S] -> [N, side**2, vision hidden], of a dummy tile where N is 0.

        The hidden state is the one `config.vision_feature_layer` names, before `post_layernorm`. No graph is kept
        where the tower is frozen: nothing below it trains.
        """
        tower = self.hf_model.model.vision_tower
        if not len(pixel_values):
            pixel_values = pixel_values.new_zeros(1, 3, self.geometry.tile_size, self.geometry.tile_size)
        pixels = (pixel_values.float() / 255 - 0.5) / 0.5
        trains = any(parameter.requires_grad for parameter in tower.parameters())
        with nullcontext() if trains else torch.no_grad():
            # the patches leave the embeddings transposed, and every layer would run on strided rows
            hidden = tower.embeddings(pixels.to(device_of(tower.embeddings), tower.dtype)).contiguous()
            for layer in tower.encoder.layers[: num_tower_layers(self.hf_model.config)]:
                hidden = layer(hidden.to(device_of(layer)), None)
        return hidden


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes. Where accelerate keeps its weights elsewhere, its hooks know; those of a module around
    it do not run, since the forward calls the parts by themselves."""
    hooks = (getattr(part, "_hf_hook", None) for part in module.modules())
    told = (device for hook in hooks if (device := getattr(hook, "execution_device", None)) is not None)
    device = next(told, None)
    return next(module.parameters()).device if device is None else torch.device(device)


def num_tower_layers(config) -> int:
    """How many encoder layers run up to the hidden state `vision_feature_layer` (-1 = after the last, 0 = none)."""
    layer, layers = config.vision_feature_layer, config.vision_config.num_hidden_layers
    return layer if layer >= 0 else layers + 1 + layer


def _check_places(batch: PackedBatch) -> None:
    """ValueError with the sample where the placeholders of a visual are not one span of its length in one document."""
    if not batch.visuals:
        return
    sizes = torch.tensor([layout.num_tokens for layout in batch.visuals])
    if int(sizes.sum()) != len(batch.visual_positions):
        samples = ", ".join(batch.sample_ids)
        raise ValueError(
            f"{len(batch.visual_positions)} placeholders for {int(sizes.sum())} visual tokens in {samples}"
        )
    positions, bounds = batch.visual_positions.cpu(), batch.cu_seqlens.cpu()
    stops = sizes.cumsum(0)
    first, last = positions[stops - sizes], positions[stops - 1]
    document, end = (torch.searchsorted(bounds, place, right=True) - 1 for place in (first, last))
    for i in ((last - first != sizes - 1) | (document != end)).nonzero().flatten().tolist():
        raise ValueError(f"{batch.sample_ids[document[i]]}: its placeholders do not fit {batch.visuals[i]}")
