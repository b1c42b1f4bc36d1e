"""Drawing one picture: what no step changes is made once (`Prepared`), then each step runs only what it must.

In:  finished frames as latents [1 or B, c, h_i, w_i], the target's size, one text condition per guidance branch.
Out: `velocities(x, t)`: the target's velocity [B, c, h, w] of each branch. x, t and all tensors on the model's device;
     a step asks nothing of the device (no synchronisation), so that the host runs ahead of it.

Made once a picture: rotary tables, embedded finished frames, the timesteps of finished frames, the text's projection
and its keys and values in all blocks, and under frame_causal the finished frames' own keys and values
(frame_cache.py). Each step then runs
- under `full` all frames, since finished ones look at the target too; but in the last block, and in the head, the
  target alone goes on;
- under `frame_causal` the target alone, against the keys and values of the finished frames.
Guidance's branches differ only in the text, which the first half of the first block does not see: it runs once for all
of them. After it they run as one batch where that is small, and one by one where that would take much memory.

All of this is exact. `refresh` is not: under `full`, keys and values of the finished frames are then taken from an
earlier step, and computed anew only in every `refresh`-th one; the other steps run the target alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from duogen_core.dit import DitError
from duogen_core.dit.frame_cache import FrameCache, FrameKey, FrameLine, same
from duogen_core.dit.frames import AS_TRAINED, Attend, FrameInputs, PackedBlock, PackedFrames, Positions
from duogen_core.linear import attention as scaled_dot_product

Hidden = tuple[int, int]
Residuals = Mapping[int, Tensor]  # block -> [rows, tokens of the target, C], added behind it (controlnet.py)
# Tokens of all branches together up to which they run as one batch: small matrix products and short kernels leave a
# device idle. Above it a batch is no faster and takes the memory of all branches at once.
BATCHED_TOKENS = 4096
MAX_TEXT_BYTES = 2 * 2**30  # of one text's keys and values; a longer text's are made anew in every step


class TextKeys:
    """Keys and values of one text condition [B, N, W] in all blocks, [B, heads, N, D] each.

    Cross-attention knows no positions, so tokens may stand in any order: those that guidance's negative branch does
    not see stand last, and both branches read slices of one buffer.
    """

    def __init__(
        self,
        model: PackedFrames,
        text: Tensor,
        hidden: Hidden,
        max_bytes: int = MAX_TEXT_BYTES,
        given: Tensor | None = None,
    ) -> None:
        """text: projected. given: before that, where the projection is the model's own: rows of a longer text may then
        differ in their last bits, so whether two texts are the same is asked of what was given."""
        self.text, self.hidden = text if given is None else given, hidden
        start, end = hidden
        self.length, self.seen_by_all = text.shape[1], text.shape[1] - (end - start)
        # A batch often is one document drawn several times.
        ordered = text[:1] if alike(self.text) else text
        if end > start:
            ordered = torch.cat([ordered[:, :start], ordered[:, end:], ordered[:, start:end]], dim=1)
        self._ordered = ordered
        blocks = model.transformer_blocks
        width = model.config.num_attention_heads * model.config.attention_head_dim
        fits = ordered.shape[0] * self.length * 2 * width * len(blocks) * text.element_size() <= max_bytes
        self._kept = [block.text_keys_values(ordered) for block in blocks] if fits and self.length else None

    def of_block(self, index: int, block: PackedBlock) -> tuple[Tensor, Tensor]:
        return block.text_keys_values(self._ordered) if self._kept is None else self._kept[index]

    def before(self, index: int, block: PackedBlock, end: int) -> tuple[Tensor, Tensor]:
        """Of the first `end` tokens in the text's own order."""
        return self.cut(*self.of_block(index, block), end)

    def cut(self, k: Tensor, v: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """Of keys and values in this order, those of the first `end` tokens in the text's own order."""
        start, stop = self.hidden
        if end <= start or start == stop:
            return k[:, :, :end], v[:, :, :end]
        seen = start + max(0, end - stop)
        also = slice(self.seen_by_all, self.seen_by_all + min(end, stop) - start)
        return tuple(torch.cat([t[:, :, :seen], t[:, :, also]], dim=2) for t in (k, v))


@dataclass(frozen=True)
class Branch:
    """One guidance branch: its text, how much of it the target sees, and its finished frames' keys and values, where
    they outlive a step."""

    text: TextKeys
    seen: int
    line: FrameLine | None


class Prepared:
    """See above. Made by `PackedDit.prepare`, which checks the arguments."""

    def __init__(
        self,
        model: PackedFrames,
        frames: Sequence[Tensor],
        texts: Sequence[tuple[Tensor, Tensor, Hidden]],
        size: tuple[int, int],
        ends: Sequence[Sequence[int]],
        cache: FrameCache | None,
        refresh: int = 1,
        attention: Attend | None = None,
        positions: Positions = AS_TRAINED,
        together: bool = False,
    ) -> None:
        """texts: as given, projected [B, N, W], hidden. ends: for each branch the text tokens before each frame
        (frame_causal)."""
        self.attention, self.positions = attention or plain_attention, positions
        self.ends = ends
        self.model, self.size, self.grid = model, tuple(size), model.grid(size)
        like = texts[0][1]
        self.batch, self.device, self.dtype = like.shape[0], like.device, like.dtype
        self.target = self.grid[0] * self.grid[1]
        self.causal = model.config.attention == "frame_causal" and not together
        grids = [model.grid(frame.shape) for frame in frames]
        self.frames = len(grids)
        self.sizes = [height * width for height, width in grids]
        self.clean_tokens = sum(self.sizes)
        places = [(i, *grid) for i, grid in enumerate([*grids, self.grid])]
        self.rope = model.rope_of(places[-1:] if self.causal else places, self.device, positions)
        self.refresh = 1 if self.causal or together or not grids else refresh
        self.step = 0  # counted where keys and values are refreshed now and then
        self.clean_time = torch.full((1, 1), model.config.clean_timestep, device=self.device)
        self.clean: Tensor | None = None  # full: the finished frames' embedded patches [B, tokens, C]
        if frames and not self.causal:
            embedded = (self._embed(frame, clean=True) for frame in frames)
            self.clean = torch.cat([each.expand(self.batch, -1, -1) for each in embedded], dim=1)
        cache = FrameCache() if cache is None else cache
        known: list[TextKeys] = []
        self.branches: list[Branch] = []
        for (text, projected, hidden), places_in_text in zip(texts, ends, strict=True):
            wanted = [own for other, _, own in texts if other is text or same(other, text)]
            keys = self._text_keys(known, text, projected, hidden, wanted)
            line = self._line(cache, frames, places_in_text, keys) if self.causal and frames else None
            line = FrameLine() if self.refresh > 1 else line
            self.branches.append(Branch(keys, keys.length - (hidden[1] - hidden[0]), line))
        tokens = self.batch * len(self.branches) * (self.target + (0 if self.causal else self.clean_tokens))
        every = tuple(range(len(self.branches)))
        self.groups = [every] if tokens <= BATCHED_TOKENS else [(i,) for i in every]

    # ------------------------------------------------ once a picture

    def _embed(self, latent: Tensor, *, clean: bool) -> Tensor:
        return self.model.embed(self.model.patches(latent, clean=clean))

    def _text_keys(
        self, known: list[TextKeys], text: Tensor, projected: Tensor, hidden: Hidden, wanted: Sequence[Hidden]
    ) -> TextKeys:
        """The text's keys, shared with a branch that has the same text and hides the same tokens of it or none."""
        for keys in known:
            if hidden in (keys.hidden, (0, 0)) and (keys.text is text or same(keys.text, text)):
                return keys
        # The first branch sees all of the text; the buffer is in the order that the other one wants.
        order = hidden if hidden != (0, 0) else next((own for own in wanted if own != (0, 0)), (0, 0))
        known.append(TextKeys(self.model, projected, order, given=text))
        return known[-1]

    def _line(self, cache: FrameCache, frames: Sequence[Tensor], ends: Sequence[int], text: TextKeys) -> FrameLine:
        """Brings a line of the cache to exactly these frames; those that are not there yet run, one by one."""
        whole = text.text
        one = all(frame.shape[0] == 1 for frame in frames) and (not any(ends) or alike(whole[:, : max(ends)]))
        rows = 1 if one else self.batch
        wanted = []
        for latent, start, end in zip(frames, [0, *ends], ends):
            height, width = self.model.grid(latent.shape)
            key = (latent.expand(rows, -1, -1, -1), whole[:rows, start:end], end, height * width)
            wanted.append(FrameKey(*key, (self.attention, self.positions)))
        line = cache.line(wanted, self)
        for index in range(len(line.frames), len(wanted)):
            self._run_finished(line, index, wanted[index], text)
            line.frames.append(wanted[index].copied())
        return line

    def _run_finished(self, line: FrameLine, index: int, frame: FrameKey, text: TextKeys) -> None:
        """Writes the keys and values of one finished frame behind those of the frames before it."""
        model, start = self.model, line.length
        rows = frame.latent.shape[0]

        def attend(block: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.attention(block, q, *line.put(block, None, start, k, v))

        def attend_text(index: int, block: PackedBlock, q: Tensor) -> Tensor:
            k, v = (each[:rows].expand(rows, -1, -1, -1) for each in text.before(index, block, frame.end))
            return self.attention(index, q, k, v)

        x = self._embed(frame.latent, clean=True)[:, None]
        embedded, temb = model.timed(self.clean_time.expand(rows, 1), x)
        rope = model.rope_of([(index, *model.grid(frame.latent.shape))], self.device, self.positions)
        inputs = FrameInputs(embedded, temb, rope, attend, attend_text if frame.end else None, spans=(frame.tokens,))
        *blocks, last = model.transformer_blocks
        for number, block in enumerate(blocks):
            x = block.text_and_mlp(block.frame_attention(x, inputs, number), inputs, number)
        line.put(len(blocks), None, start, *last.frame_keys_values(x, inputs))  # nothing looks at what follows there

    # ------------------------------------------------ once a step

    @torch.no_grad()
    def velocities(self, x: Tensor, t: Tensor, residuals: Residuals | None = None) -> list[Tensor]:
        """x [B, c, h, w] at the times t [B] -> each branch's velocity [B, c, h, w], in the weights' own type.

        residuals: of a ControlNet for this step, rows branch by branch."""
        alone = self._begin_step()
        x, inputs = self.inputs(x, t, alone)
        blocks = self.model.transformer_blocks
        target = self.target if len(blocks) == 1 else None
        first = blocks[0].frame_attention(x, self._looking(inputs, (0,), alone), 0, target)
        out = []
        for group in self.groups:
            shape = (len(group), *first.shape)
            x = first if len(group) == 1 else first.expand(shape).flatten(0, 1)
            looking = self.controlled(self._looking(inputs, group, alone), residuals, group)
            out += self._rest(x, looking, 0).chunk(len(group))
        return out

    @torch.no_grad()
    def velocity(self, x: Tensor, t: Tensor, residuals: Residuals | None = None) -> Tensor:
        """Rows of all branches, branch by branch, each with an x and a time of its own: [G * B, c, h, w]."""
        alone = self._begin_step()
        x, inputs = self.inputs(x, t, alone)
        every = tuple(range(len(self.branches)))
        inputs = self.controlled(self._looking(inputs, every, alone, repeat=False), residuals, every)
        return self._rest(x, inputs, None)

    def _begin_step(self) -> bool:
        """Whether the target runs alone in this step, against keys and values that are there already."""
        if self.refresh > 1:
            self.step += 1
            return (self.step - 1) % self.refresh > 0
        for place, branch in enumerate(self.branches):
            # Another picture has grown this one's line: its frames stand where the scratch was.
            if branch.line is not None and branch.line.length != self.clean_tokens:
                self.branches[place] = replace(branch, line=branch.line.fork(self.frames))
        return self.causal

    def inputs(self, x: Tensor, t: Tensor, alone: bool) -> tuple[Tensor, FrameInputs]:
        """Embedded tokens [R, 1, L, C], and what the blocks are told of them."""
        tokens, times, spans = self._embed(x.to(self.dtype), clean=False), t[:, None], (self.target,)
        rope = self.rope
        if alone:
            rope = tuple(table[-self.target :] for table in rope)
        elif self.clean is not None:
            clean = self.clean if len(x) == self.batch else self.clean.repeat(len(x) // self.batch, 1, 1)
            tokens = torch.cat([clean, tokens], dim=1)
            if self.model.config.clean_timestep >= 0:
                times = torch.cat([self.clean_time.expand(len(t), 1).to(t.dtype), times], dim=1)
                spans = (self.clean_tokens, self.target)
            else:  # finished frames share the target's time
                spans = (self.clean_tokens + self.target,)
        embedded, temb = self.model.timed(times, tokens)
        return tokens[:, None], FrameInputs(embedded, temb, rope, self.attention, None, spans=spans)

    def _looking(self, inputs: FrameInputs, group: Sequence[int], alone: bool, repeat: bool = True) -> FrameInputs:
        """The inputs of the branches of one group, which run as one batch: rows branch by branch."""
        branches = [self.branches[i] for i in group]
        embedded, temb = inputs.embedded, inputs.temb
        if repeat and self.batch > 1 and len(group) > 1:  # a batch of 1 is repeated where it is used
            embedded, temb = (each.repeat(len(group), 1, 1, 1) for each in (embedded, temb))

        def attend_text(index: int, block: PackedBlock, q: Tensor) -> Tensor:
            out = []
            for branch, own in zip(branches, q.chunk(len(branches)), strict=True):
                if not branch.seen:
                    out.append(torch.zeros_like(own))
                    continue
                pair = (each[:, :, : branch.seen] for each in branch.text.of_block(index, block))
                out.append(self.attention(index, own, *(each.expand(len(own), -1, -1, -1) for each in pair)))
            return out[0] if len(out) == 1 else torch.cat(out)

        def attend_line(block: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out = []
            for branch, *own in zip(branches, *(each.chunk(len(branches)) for each in (q, k, v)), strict=True):
                line = branch.line
                rows = [None] if len(own[0]) == line.buffers[block].shape[1] else [0] * len(own[0])
                for row, (one, key, value) in zip(rows, zip(*(each.chunk(len(rows)) for each in own), strict=True)):
                    seen = line.put(block, row, self.clean_tokens, key, value)
                    out.append(self.attention(block, one, *seen))
            return out[0] if len(out) == 1 else torch.cat(out)

        def attend_and_keep(block: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            for branch, key, value in zip(branches, *(each.chunk(len(branches)) for each in (k, v)), strict=True):
                branch.line.put(block, None, 0, key[:, :, : self.clean_tokens], value[:, :, : self.clean_tokens])
            return self.attention(block, q, k, v)

        attend = self.attention
        if self.clean_tokens and alone:
            attend = attend_line
        elif self.refresh > 1:
            attend = attend_and_keep
        looked_at = attend_text if any(branch.seen for branch in branches) else None
        return FrameInputs(embedded, temb, inputs.rope, attend, looked_at, spans=inputs.spans)

    def controlled(self, inputs: FrameInputs, residuals: Residuals | None, group: Sequence[int]) -> FrameInputs:
        """The inputs with what a ControlNet adds to the target's tokens, and to no others: keys and values of finished
        frames stay those of the cache."""
        if not residuals:
            return inputs

        def after(block: int, x: Tensor) -> Tensor:
            if block in residuals:
                rows = residuals[block].unflatten(0, (len(self.branches), -1))[list(group)].flatten(0, 1)
                x[:, :, -self.target :] += rows[:, None]
            return x

        return replace(inputs, after=after)

    def _rest(self, x: Tensor, inputs: FrameInputs, done: int | None) -> Tensor:
        """From the second half of block `done` (None: from the first block on) to the velocity."""
        blocks = self.model.transformer_blocks
        last = len(blocks) - 1
        for number in range(0 if done is None else done, last + 1):
            if number != done:
                x = blocks[number].frame_attention(x, inputs, number, self.target if number == last else None)
            if number == last:
                inputs = inputs.of_target()
            x = blocks[number].text_and_mlp(x, inputs, number)
            if inputs.after is not None:
                x = inputs.after(number, x)
        return self.model.unpatch(self.model.head(x, inputs)[:, 0], self.grid)


def plain_attention(_block: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product(q, k, v)


def alike(rows: Tensor) -> bool:
    """Whether all rows of a batch are the same."""
    return rows.shape[0] == 1 or rows.stride(0) == 0 or torch.equal(rows, rows[:1].expand_as(rows))


def checked_ends(frame_ends: Sequence[int] | None, clean: int, tokens: int) -> tuple[int, ...]:
    """One non-decreasing list for the whole batch, as long as there are finished pictures."""
    ends = list(frame_ends or ())
    if ends and isinstance(ends[0], Sequence):
        if any(list(other) != list(ends[0]) for other in ends):
            raise DitError(f"frame_ends differ within one batch ({ends}); run these documents in separate calls.")
        ends = list(ends[0])
    if len(ends) != clean:
        raise DitError(f"frame_ends has {len(ends)} entries for {clean} finished images; expected one for each.")
    if any(a > b for a, b in zip([0, *ends], [*ends, tokens], strict=True)):
        raise DitError(f"frame_ends {ends} must not decrease, and must lie within the {tokens} text tokens.")
    return tuple(int(end) for end in ends)
