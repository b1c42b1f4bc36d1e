"""The packed video DiT: draws one picture while looking at every earlier one. One file per model family.

A family is a class with

    config.attention        "full": every frame sees every frame (the published bases), or
                            "frame_causal": a frame sees itself, earlier frames and the text before its own place.
                            A property of the weights, stored in their config.json.
    config.clean_timestep   the timestep that earlier, finished pictures are given
    config.references       False: weights that draw without looking at earlier pictures, which are left out
    config.text_embed_dim   width of the text condition: the connector's output width
    from_pretrained(folder, dtype=, prepare=, copy=)      config.json + diffusion_pytorch_model.safetensors
    save_pretrained(folder)

    forward_packed(frames, timestep, text, *, frame_ends=None, hidden=None, cache=None) -> v
        frames      list of normalised latents [B, 16, h_i, w_i], each its own size, in order of appearance; the last
                    one is the noisy target, the others are finished pictures (their batch may be 1: it is repeated)
        timestep    [B], the target's t in 0..1 of x_t = t * noise + (1 - t) * x0
        text        [B, N, text_embed_dim]; N may be 0: then no frame sees any text
        frame_ends  frame_causal only: for every finished picture, how many text tokens stand before it
        hidden      (start, end): text tokens that the target does not see, guidance's negative branch. Under
                    frame_causal the finished pictures still see them, if they stand before their own places, so that
                    both branches share what is kept of those
        cache       frame_causal only: a FrameCache that outlives the call; nothing in the result depends on it
        v           [B, 16, h, w], the target's velocity noise - x0

    forward_train(sequences) -> [[v, ...], ...]           every noisy frame of a pack of documents: packing.py

No family moves anything between devices: everything runs where the inputs are.

Adding a family: one file here, one line in FAMILIES, and a tiny configuration in tests/core/dit/test_contract.py, which
tests all of the above.
"""

from __future__ import annotations

from duogen_core.errors import DuoGenError

# `_class_name` in config.json -> module and class. diffusers' own folders load as the packed subclass.
FAMILIES = {
    "PackedCosmos": ("duogen_core.dit.cosmos", "PackedCosmos"),
    "CosmosTransformer3DModel": ("duogen_core.dit.cosmos", "PackedCosmos"),
}


class DitError(DuoGenError):
    """A DiT folder or a call that does not fit the contract above."""
