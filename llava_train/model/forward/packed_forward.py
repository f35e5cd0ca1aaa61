"""The training forward: a `PackedBatch` in, the summed cross-entropy of its supervised tokens out.

It calls the submodules of the untouched transformers class. All tiles and frames go through the vision tower in one
call, and every forward runs the same modules whatever the batch holds, as ZeRO-3 needs on every rank.
"""

from __future__ import annotations

import torch
from torch import nn

from llava_train.batch.packed import PackedBatch
from llava_train.family.base import Geometry, HFModel
from llava_train.family.registry import family_of
from llava_train.model.forward.attention import PACKED, TILES, AttentionChoice, Documents, choose_kernel, register
from llava_train.model.forward.cpu_bf16 import widen_products
from llava_train.model.forward.fused import fuse_norms
from llava_train.model.forward.loss import make_loss
from llava_train.shared.module_device import device_of


class PackedForward(nn.Module):
    """`hf_model` on packed rows.

    hf_model   its weights are trained in place; its attention is set to ours
    geometry   how visuals become tokens; must be the one the batches were made with
    device     where batches are moved to; None: they are there
    compiled   whether the loss is compiled
    """

    def __init__(
        self,
        hf_model: HFModel,
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
        self.vision = family_of(hf_model.config).vision(hf_model, geometry)
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

        A batch without tiles sends a dummy tile through tower and projector. Its features, and the parameters that no
        layout of the batch reads, are added with zero weight: their gradients exist on every rank, and are zero.
        """
        pixels, size = batch.pixel_values, self.geometry.tile_size
        embeddings = self.hf_model.model.language_model.get_input_embeddings()(batch.input_ids)
        features = self.vision.features(pixels if len(pixels) else pixels.new_zeros(1, 3, size, size))
        features = features.to(embeddings.device)
        unused = self.vision.unused()
        zero = 0.0 if unused is None else 0.0 * unused.to(embeddings.device)
        if not batch.visuals:
            return embeddings + (0.0 * features.sum() + zero).to(embeddings.dtype)
        visual = self.vision.pack(features, batch.visuals) + zero
        return embeddings.index_copy(0, batch.visual_positions.to(embeddings.device), visual.to(embeddings.dtype))


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
