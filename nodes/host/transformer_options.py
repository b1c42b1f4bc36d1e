"""What ComfyUI's `transformer_options` ask of a MODEL, as the core's hooks: attention, positions, patches of blocks.

In:  the options of one call, the MODEL's number of blocks. Out: what `prepare` and `patched_velocity` of the core take,
     or a sentence that names the node whose patch has no place in this transformer.
A patch is called as ComfyUI's own transformers call it (comfy/ldm/qwen_image, wan and flux): `img` [R, tokens, C] with
the target's tokens first and the reference images' behind them; q, k and v of attn1_patch and attn2_patch
[R, heads, tokens, D] by name; those of a replaced attention, and what an output patch gets, [R, tokens, C].
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import comfy.ldm.modules.attention as comfy_attention
from comfy.cli_args import args as command_line
from torch import Tensor, device

from duogen_core.dit.frames import AS_TRAINED, FrameInputs, Positions
from duogen_core.dit.patched import Patches
from duogen_core.dit.prepared import plain_attention
from duogen_core.errors import DuoGenError, is_out_of_memory

BLOCKS = ("double_block", "block")  # how patches name a block that, like ours, reads the text
ATTENTIONS = {"frames": "attn1", "text": "attn2"}
PATCHES = (
    "double_block", "post_input", "mlp_patch", "attn1_patch", "attn1_output_patch", "attn2_patch", "attn2_output_patch",
)  # fmt: skip
VALUES_ALONE = "stg_self_attn_blocks"  # the blocks in which LTXV Spatio-Temporal Guidance lets each token see itself
# What one family's nodes ask of their own model alone:
FOREIGN = {
    "a2v_cross_attn": "LTXV Modality Guidance", "audio_embeds": "a Wan talking-image node",
    "animate2_cache": "a Wan Animate node", "chroma_radiance_options": "Chroma Radiance Options",
    "ar_config": "an autoregressive video node", "minimax_h3": "a MiniMax node",
}  # fmt: skip


class ChosenAttention:
    """ComfyUI's attention function (--use-sage-attention and its like, or a node's override) in the core's place.

    Where two are equal, they compute the same. options: of the step that runs, which an override may read.
    """

    def __init__(self, function: Callable[..., Tensor], override: Any) -> None:
        self.function, self.override = function, override
        self.options: dict[str, Any] = {}

    def __eq__(self, other: object) -> bool:
        own = isinstance(other, ChosenAttention)
        return own and self.function is other.function and self.override is other.override

    def __hash__(self) -> int:
        return hash((id(self.function), id(self.override)))

    def __call__(self, block: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.options["block_index"] = block
        heads = q.shape[1]
        out = self.function(q, k, v, heads, skip_reshape=True, transformer_options=self.options)
        return out.unflatten(2, (heads, -1)).transpose(1, 2)


def attention_of(options: Mapping[str, Any], where: device) -> Callable[..., Tensor]:
    """ComfyUI's function, but on a CPU where nobody has chosen one: there the core's is the same and faster."""
    override = options.get("optimized_attention_override")
    function = comfy_attention.optimized_attention  # read now: a node may have put another one there
    default = function is comfy_attention.attention_sub_quad and not command_line.use_quad_cross_attention
    if where.type == "cpu" and override is None and default:
        return plain_attention
    chosen = ChosenAttention(function, override)
    chosen.options = dict(options)
    return chosen


def positions_of(options: Mapping[str, Any]) -> Positions:
    """ScaleROPE: how an image's place in the answer, its rows and its columns are counted."""
    wanted = options.get("rope_options") or {}
    axes = tuple((float(wanted.get(f"scale_{a}", 1.0)), float(wanted.get(f"shift_{a}", 0.0))) for a in "tyx")
    return AS_TRAINED if axes == AS_TRAINED else axes


def made_by(patch: Any) -> str:
    """The node a patch is of, as far as its code tells: 'HyperTile (nodes_hypertile)'."""
    patch = getattr(patch, "func", patch)
    named = patch if hasattr(patch, "__qualname__") else type(patch)
    module = str(getattr(named, "__module__", "")).replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[-1]
    return f"{named.__qualname__.split('.')[0]} ({module})"


def refuse(patch: Any, what: str) -> NoReturn:
    raise DuoGenError(
        f"{made_by(patch)}, before the sampler, {what}. DuoGen's diffusion transformer cannot apply it; take that node "
        "out."
    )


def patches_of(options: Mapping[str, Any], blocks: int) -> BlockPatches | None:
    """The patches of this call, or None without any; a DuoGenError for one that would do nothing here."""
    patches = {name: own for name, own in (options.get("patches") or {}).items() if own}
    replaced = {name: own for name, own in (options.get("patches_replace") or {}).items() if own}
    for name, node in FOREIGN.items():
        if name in options:
            raise DuoGenError(f"{node}, before the sampler, is made for another model's layers; take that node out.")
    for name, own in patches.items():
        if name not in PATCHES:
            refuse(own[0], f"patches a place ({name}) that only a U-Net or another model has")
        if name in ("attn1_patch", "attn2_patch"):
            for patch in own:
                if not takes_positions(patch):
                    refuse(patch, f"patches attention ({name}) as a U-Net or ComfyUI's own Wan has it")
    found: dict[str, dict[int, Any]] = {}
    for name, own in replaced.items():
        if name not in ("dit", "attn1", "attn2"):
            refuse(next(iter(own.values())), f"replaces layers ({name}) that only another model has")
        found[name] = {i: patch for key, patch in own.items() if (i := block_of(name, key, blocks)) is not None}
        if not found[name]:
            keys = ", ".join(" ".join(map(str, key)) for key in own)
            what = (
                f"replaces layers ({keys}) that this MODEL does not have: its blocks are double_block 0 to {blocks - 1}"
            )
            refuse(next(iter(own.values())), what)
    alone = {i for i in options.get(VALUES_ALONE) or () if 0 <= i < blocks}
    if options.get(VALUES_ALONE) and not alone:
        raise DuoGenError(
            f"LTXV Spatio-Temporal Guidance names the blocks {', '.join(map(str, sorted(options[VALUES_ALONE])))}; "
            f"this MODEL has the blocks 0 to {blocks - 1}."
        )
    return BlockPatches(options, blocks, patches, found, alone) if patches or found or alone else None


def takes_positions(patch: Any) -> bool:
    """Whether it is called as a transformer's patch is: by name, with `pe` among them."""
    try:
        parameters = inspect.signature(patch).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(each.kind is each.VAR_KEYWORD or each.name == "pe" for each in parameters)


def block_of(kind: str, key: Sequence[Any], blocks: int) -> int | None:
    """Which of our blocks a replacement is for. A U-Net's middle, for attention (Perturbed Attention Guidance), is our
    middle block."""
    if kind != "dit" and tuple(key) == ("middle", 0):
        return blocks // 2
    if len(key) == 2 and key[0] in BLOCKS and isinstance(key[1], int) and 0 <= key[1] < blocks:
        return key[1]
    return None


class BlockPatches(Patches):
    """The patches of one step, called as ComfyUI's own transformers would. `of_step` must be called before it runs."""

    def __init__(
        self,
        options: Mapping[str, Any],
        blocks: int,
        patches: Mapping[str, Sequence[Any]],
        replaced: Mapping[str, Mapping[int, Any]],
        alone: set[int],
    ) -> None:
        self.patches, self.replaced, self.alone = patches, replaced, alone
        self.options = {**options, "total_blocks": blocks, "block_type": "double"}
        self.changes_mlp = "mlp_patch" in patches
        self.changes_text = any(name in patches for name in PATCHES if name.startswith("attn2")) or "attn2" in replaced

    @property
    def names(self) -> str:
        own = [patch for each in self.patches.values() for patch in each]
        own += [patch for each in self.replaced.values() for patch in each.values()]
        return ", ".join(sorted({made_by(patch) for patch in own})) or "LTXV Spatio-Temporal Guidance"

    def of_step(self, x: Tensor, text: Tensor, references: Sequence[int]) -> BlockPatches:
        """x [R, channels, 1, h, w] and text [R, N, W] of the step; references: tokens of each earlier image."""
        self.x, self.text, self.clean = x, text, sum(references)
        self.options |= {"reference_image_num_tokens": list(references), "original_shape": list(x.shape)}
        return self

    # ------------------------------------------------ the core's hooks

    def tokens(self, x: Tensor) -> Tensor:
        for patch in self.patches.get("post_input", ()):
            given = {"img": self._first(x), "txt": self.text, "x": self.x, "img_ids": None, "txt_ids": None}
            out = self._call(patch, {**given, "transformer_options": self.options})
            x = self._back(self._checked(patch, out["img"], given["img"]))
        return x

    def block(self, index: int, x: Tensor, inputs: FrameInputs, run: Callable[[Tensor], Tensor]) -> Tensor:
        self.options["block_index"] = index
        replacement = self.replaced.get("dit", {}).get(index)
        if replacement is None:
            x = run(x)
        else:
            given = {"img": self._first(x), "txt": self.text, "vec": inputs.temb.flatten(1, 2), "pe": inputs.rope}

            def original(now: dict[str, Any]) -> dict[str, Any]:
                changed = [name for name in ("txt", "vec", "pe") if name in now and now[name] is not given[name]]
                if changed:
                    refuse(replacement, f"changes what a block reads beside the image ({', '.join(changed)})")
                return {**now, "img": self._first(run(self._back(now["img"])))}

            out = self._call(replacement, {**given, "transformer_options": self.options}, {"original_block": original})
            x = self._back(self._checked(replacement, out["img"], given["img"]))
        for patch in self.patches.get("double_block", ()):
            given = {
                "img": self._first(x), "txt": self.text, "x": self.x, "vec": inputs.temb.flatten(1, 2),
                "block_index": index, "img_offset": 0, "block_type": "double", "transformer_options": self.options,
            }  # fmt: skip
            like = given["img"]
            x = self._back(self._checked(patch, self._call(patch, given)["img"], like))
        return x

    def attention(
        self, index: int, kind: str, q: Tensor, k: Tensor, v: Tensor, run: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> Tensor:
        name = ATTENTIONS[kind]
        before, after = self.patches.get(f"{name}_patch", ()), self.patches.get(f"{name}_output_patch", ())
        replacement = self.replaced.get(name, {}).get(index)
        alone = kind == "frames" and index in self.alone
        if not (before or after or replacement or alone):
            return run(q, k, v)
        heads, own = q.shape[1], kind == "frames"  # the text's tokens stand in no such order
        q = self._first(q, 2)
        k, v = (self._first(each, 2) if own else each for each in (k, v))
        options = {
            **self.options, "block_index": index, "block": ("double_block", index), "n_heads": heads,
            "dim_head": q.shape[-1], "attn_precision": None,
        }  # fmt: skip
        for patch in before:
            out = self._call(patch, q, k, v, pe=None, attn_mask=None, extra_options=options)
            q, k, v = (self._checked(patch, out.get(n, old), old) for n, old in (("q", q), ("k", k), ("v", v)))
        if replacement is not None:
            flat = self._call(replacement, *(each.transpose(1, 2).flatten(2) for each in (q, k, v)), options)
            out = self._checked(replacement, flat, q.transpose(1, 2).flatten(2))
        else:
            if not alone:
                k, v = (self._back(each, 2) if own else each for each in (k, v))
                v = self._first(run(self._back(q, 2), k, v), 2)
            out = v.transpose(1, 2).flatten(2)
        for patch in after:
            out = self._checked(patch, self._call(patch, out, options), out)
        return self._back(out.unflatten(2, (heads, -1)).transpose(1, 2), 2)

    def mlp(self, index: int, x: Tensor) -> Tensor:
        for patch in self.patches.get("mlp_patch", ()):
            given = self._first(x)
            out = self._call(patch, {"x": given, "transformer_options": {**self.options, "block_index": index}})
            x = self._back(self._checked(patch, out["x"], given))
        return x

    # ------------------------------------------------ their order of tokens, and what they give back

    def _first(self, x: Tensor, dim: int = 1) -> Tensor:
        """The target's tokens first, as patches expect them."""
        return x.roll(-self.clean, dim) if self.clean else x

    def _back(self, x: Tensor, dim: int = 1) -> Tensor:
        return x.roll(self.clean, dim) if self.clean else x

    def _checked(self, patch: Any, found: Any, like: Tensor) -> Tensor:
        if not isinstance(found, Tensor) or found.shape != like.shape:
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            refuse(patch, f"makes {shape} of tokens of the shape {list(like.shape)}")
        return found

    def _call(self, patch: Any, *given: Any, **named: Any) -> Any:
        try:
            return patch(*given, **named)
        except (TypeError, LookupError, AttributeError, ValueError, RuntimeError) as error:
            if isinstance(error, DuoGenError) or is_out_of_memory(error):
                raise
            raise DuoGenError(
                f"{made_by(patch)}, before the sampler, failed in block {self.options.get('block_index', 0)} of "
                f"DuoGen's diffusion transformer: {error}. It was made for another model; take that node out."
            ) from error
