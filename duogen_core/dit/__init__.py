"""The packed video DiT: draws one picture while looking at every earlier one. One file per model family.

A family is a class with

    config.attention        "full": every frame sees every frame (the published bases), or
                            "frame_causal": a frame sees itself, earlier frames and the text before its own place.
                            A property of the weights, stored in their config.json.
    config.clean_timestep   the timestep that earlier, finished pictures are given
    config.references       False: weights that draw without looking at earlier pictures, which are left out
    config.text_embed_dim   width of the text condition: the connector's output width
    config.out_channels      channels of a latent: 16 with the Wan 2.1 VAE, 48 with Wan 2.2's
    from_pretrained(folder, dtype=, prepare=, copy=)      config.json + diffusion_pytorch_model.safetensors
    save_pretrained(folder)

    prepare(frames, texts, size, *, frame_ends=None, cache=None, refresh=1, attention=None, positions=AS_TRAINED,
            together=False) -> Prepared                                       once a picture (prepared.py)
        frames      list of normalised latents [1 or B, channels, h_i, w_i] of finished pictures, each its own size,
                    in order of appearance
        texts       one per guidance branch: (text [B, N, text_embed_dim], hidden); N may be 0: then no frame sees any
                    text. hidden: None, or the (start, end) of text tokens that the target does not see, guidance's
                    negative branch. Under frame_causal the finished pictures still see them, if they stand before their
                    own places, so that both branches share what is kept of those
        size        (h, w) of the target's latent
        frame_ends  frame_causal only: for every finished picture, how many text tokens stand before it
        cache       frame_causal only: a FrameCache that outlives the picture; nothing in the result depends on it
        refresh     full only, an approximation: keys and values of finished pictures are computed anew in every
                    refresh-th step and reused in those between; 1 is exact. frame_causal reuses them exactly
        attention   (block, q, k, v) -> as q, each [B, heads, L, D], in the place of PyTorch's; never with a mask
        positions   (scale, shift) of time, rows and columns; not 1 and 0 is not what the weights were trained with
        together    for steps whose blocks somebody changes (`patched_velocity`, patched.py), which reuse nothing
    Prepared.velocities(x, t) -> [v, ...]                                         once a step
        x           [B, channels, h, w], the noisy target x_t = t * noise + (1 - t) * x0
        t           [B], its time in 0..1, on x's device
        v           [B, channels, h, w] for each branch, its velocity noise - x0. No host-device synchronisation
    Prepared.velocity(x, t) -> v                           the same for rows of all branches that have an x each
    forward_packed(frames, timestep, text, *, frame_ends=None, hidden=None, cache=None) -> v
                    both in one call, frames with the target last; for tests and for callers with a single step
    forward_train(sequences) -> [[v, ...], ...]           every noisy frame of a pack of documents: packing.py

No family moves anything between devices: everything runs where the inputs are.

Adding a family: one file here with the methods that PackedBlock and PackedFrames name (frames.py; base.py has the
rest), lines in FAMILIES, and a tiny configuration in tests/core/dit/families.py, with which test_contract.py and the
other tests there go through all of the above. Names in published files: weights/*_keys.py and loading.py.
"""

from __future__ import annotations

from duogen_core.errors import DuoGenError

# `_class_name` in config.json -> module and class. diffusers' own folders load as the packed subclass.
FAMILIES = {
    "PackedCosmos": ("duogen_core.dit.cosmos", "PackedCosmos"),
    "CosmosTransformer3DModel": ("duogen_core.dit.cosmos", "PackedCosmos"),
    "PackedWan": ("duogen_core.dit.wan", "PackedWan"),
    "WanTransformer3DModel": ("duogen_core.dit.wan", "PackedWan"),
}


class DitError(DuoGenError):
    """A DiT folder or a call that does not fit the contract above."""
