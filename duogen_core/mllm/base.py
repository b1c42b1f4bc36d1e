"""The decode loop, the prefix cache, and the streamed connector states; the same for every MLLM family.

In: a Document. Out: `continue_` -> Continuation (text and why it stopped), `encode` -> ContextStates (the condition of
the picture that comes next). Both are pure functions of the Document (and seed): the KV cache kept between calls only
saves time. A new request reuses the longest common prefix of what is cached and crops the rest; tokens of a picture are
compared by the picture's content. `continue_many` writes several documents as one batch, and keeps a cache for each.
With a connector, every token that runs also leaves its `sum_l project_layer(l, h_l)`, [cross_width] numbers, so states
never cost a second pass.
Source: DuoGen (arXiv 2602.00508); design after karpathy/nanochat's engine (a loop that knows only token ids).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from duogen_core.connector import Connector
from duogen_core.document import Document
from duogen_core.errors import Cancelled, DuoGenError
from duogen_core.mllm.chat import (
    Layout,
    TextStream,
    control_ids,
    control_set,
    has_bov,
    image_token_counts,
    layout,
    picture_grid,
    picture_patches,
    token_bytes,
)
from duogen_core.mllm.constrained import Constraint
from duogen_core.mllm.prompted import MarkedStream, Prompted
from duogen_core.mllm.token_sampling import TokenSampling, choose

Stop = Literal["picture", "end", "max_tokens", "interrupted"]
CHUNK = 512  # tokens of a prefill between two looks at `cancelled`
WAITING = 32  # written tokens whose states wait to go through the connector together


@dataclass(frozen=True)
class Continuation:
    """What was written (the marker that ended it is not in the text), and the number of tokens that took.

    caption: what a prompted model wants drawn, where it said so in its marker.
    """

    text: str
    stop: Stop
    tokens: int
    caption: str = ""


@dataclass(frozen=True)
class ContextStates:
    """The DiT's text condition: states float32 [N, cross_width] of all tokens before <BOV>, after GELU.

    drop: what guidance's other branch does not see, as the connector was trained.
    negative_prompt: the other branch's own states [M, cross_width], where the condition is a prompt
    (`duogen_core.mllm.prompt_states`), not a conversation.
    """

    states: Tensor
    last_segment: tuple[int, int]
    frame_ends: tuple[int, ...]
    drop: Literal["last_segment", "all_text"] = "last_segment"
    negative_prompt: Tensor | None = None

    def positive(self) -> Tensor:
        return self.states

    def negative(self) -> tuple[Tensor, tuple[int, int] | None] | None:
        """Guidance's other branch, no MLLM work: its text states, and the (start, end) of them that its target does
        not see (`hidden` of the DiT): the last text segment, or no states at all for weights trained so.

        None: there is no segment to drop, so the branch would equal the positive one.
        """
        if self.negative_prompt is not None:
            return self.negative_prompt, None
        if self.drop == "all_text":
            return self.states[:0], None
        start, end = self.last_segment
        return (self.states, self.last_segment) if end > start else None


@dataclass(eq=False)
class PrefixCache:
    """One KV cache and what it stands for. keys: per token its id, or for a picture's tokens a hash below zero."""

    kv: Any
    stamp: Any  # the state of the weights it was made with
    keys: list[int] = field(default_factory=list)
    ends: dict[int, Tensor] = field(default_factory=dict)  # number of tokens after a forward -> its last state [1, H]
    connector: Any = None  # which connector made the sums
    sums: list[Tensor] = field(default_factory=list)  # pieces [n, cross_width], together the first tokens
    waiting: list[Tensor] = field(default_factory=list)  # states [1, layers, H] of the tokens after those, one by one
    known: int = 0  # how many tokens sums and waiting have together

    def project(self, connector: Connector) -> None:
        """Adds up the layers of the tokens that wait: of many at once, as the matrix is read once for all of them."""
        if self.waiting:
            self.sums.append(connector.project_layers(torch.cat(self.waiting)))
            self.waiting = []

    @property
    def last(self) -> Tensor | None:
        """Final hidden state [1, H] of the last token, which the next token is chosen from."""
        return self.ends.get(len(self.keys))

    def common(self, keys: Sequence[int], limit: int) -> int:
        """How many tokens can be kept, at most `limit`: up to where a forward ended.

        Not up to any token: the rest of a forward that is run again by itself has the same numbers but for rounding.
        So a graph that runs twice computes the same twice, to the last bit, whatever is cached of the first time.
        """
        n = 0
        for mine, theirs in zip(self.keys[:limit], keys):
            if mine != theirs:
                break
            n += 1
        while n and (n not in self.ends or (n < len(keys) and keys[n] < 0 and keys[n - 1] == keys[n])):
            n -= 1  # nor inside a picture: its tokens are embedded together, in one pass of the vision tower
        return n


@dataclass(eq=False)
class _Row:
    """A document while it is written on."""

    cache: PrefixCache
    stream: TextStream | MarkedStream
    position: Tensor  # of the next token, [P, 1, 1]
    seed: int
    limit: int
    seen: Tensor  # ids that a repetition penalty is for
    constraint: Constraint | None = None
    written: list[int] = field(default_factory=list)  # the tokens of the reply
    stop: Stop = "max_tokens"
    count: int = 0
    caption: str | None = None
    token: int = 0  # the last one that was written


def _home(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter that a copy on the device stands for (`duogen_core.devices.Offloaded`), or itself."""
    return getattr(parameter, "home", parameter)


def _versions(module: nn.Module) -> int:
    return hash(tuple((id(p), 0 if p.is_inference() else p._version) for p in map(_home, module.parameters())))


class Mllm:
    """See the contract in `duogen_core.mllm`. The model's weights are never changed here.

    prompted: how a model without the <BOV> token says that a picture is due; None where the tokenizer has the token.
    """

    model_type: str
    num_layers: int
    hidden_size: int
    max_positions: int

    def __init__(
        self, model: nn.Module, tokenizer: Any, image_processor: Any, prompted: Prompted | None = None
    ) -> None:
        self.model, self.tokenizer, self.image_processor = model, tokenizer, image_processor
        self.prompted = prompted or (None if has_bov(tokenizer) else Prompted())
        self.control = control_ids(tokenizer, need_bov=self.prompted is None)
        self._device: torch.device | None = None
        self._caches: list[PrefixCache] = []  # of the documents written last, the one used last at the end
        self._banned: Tensor | None = None
        self.generation: Mapping[str, Any] = {}  # of its generation_config.json, what `TokenSampling.resolved` reads

    @classmethod
    def check_parts(cls, module: nn.Module, image_processor: Any, path: Path) -> None:
        """Raises a DuoGenError where values of the configuration do not go together; a family may have such."""

    def save_pretrained(self, folder: str | Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)

    @property
    def device(self) -> torch.device:
        """Where inputs go: where the embedding lies, unless set (weights may be offloaded elsewhere)."""
        return self._device or self.model.get_input_embeddings().weight.device

    @device.setter
    def device(self, device: torch.device | str | None) -> None:
        self._device = None if device is None else torch.device(device)

    def batch(self, caches: Sequence[Any]) -> Any:
        """Puts KV caches side by side for `run_rows`; None where a family cannot: then rows run one after another."""
        return None

    def decoding(self) -> AbstractContextManager[None]:
        """Is open while tokens are written one by one; a family may make that faster."""
        return nullcontext()

    def clear_cache(self) -> None:
        """Forgets the cached prefix (memory, or weights changed in a way that cannot be seen). Costs time only."""
        self._caches = []

    def constraint(self, schema: Mapping[str, Any]) -> Constraint:
        """What holds one answer to a JSON schema, for `continue_many`."""
        return Constraint(schema, self.tokenizer, [self.control.im_end, self.control.end_of_text])

    @property
    def _cache(self) -> PrefixCache | None:
        return self._caches[-1] if self._caches else None

    def cache_tokens(self, row: int = -1) -> int:
        """How many tokens the conversation that ran last has in the cache; row: of those that ran last together."""
        return len(self._caches[row].keys) if self._caches else 0

    # -- the two questions ------------------------------------------------------------------------------------------

    def continue_(
        self,
        document: Document,
        *,
        connector: Connector | None = None,
        max_new_tokens: int = 256,
        temperature: float | None = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        reply_penalty: float = 1.0,
        constraint: Constraint | None = None,
        seed: int = 0,
        on_token: Callable[[str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Continuation:
        """Continues the document until <BOV> ("picture"), the end of the turn, or a limit.

        on_token gets pieces of whole characters; joined they are the text. Sampling draws one number per (seed, token
        position), so an interrupted answer that is continued later is the answer that was not interrupted. None: as the
        model's generation_config.json says, see `TokenSampling.resolved`.
        """
        (written,) = self.continue_many(
            [document], connector=connector, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
            top_k=top_k, min_p=min_p, repetition_penalty=repetition_penalty, reply_penalty=reply_penalty,
            constraints=[constraint], seeds=[seed],
            on_token=on_token and (lambda _, text: on_token(text)), cancelled=cancelled,
        )  # fmt: skip
        return written

    def continue_many(
        self,
        documents: Sequence[Document],
        *,
        connector: Connector | None = None,
        max_new_tokens: int | Sequence[int] = 256,
        temperature: float | None = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        reply_penalty: float = 1.0,
        constraints: Sequence[Constraint | None] | None = None,
        seeds: Sequence[int] | None = None,
        on_token: Callable[[int, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Continuation]:
        """Continues several documents at once: each as `continue_` does, but one pass a token serves all of them.

        Each is read on its own cached prefix; then they run side by side, and leave when they stop. The caches of these
        documents, and no others, are kept for what comes next. on_token: with the index of the document. constraints:
        of each document what its text must be (`duogen_core.mllm.constrained`), made anew for each call; such a text
        has no markers, and ends as soon as it is whole.
        """
        sampling = TokenSampling(temperature, top_p, top_k, min_p, repetition_penalty, reply_penalty)
        sampling = sampling.resolved(self.generation)
        constraints = constraints if constraints is not None else [None] * len(documents)
        limits = [max_new_tokens] * len(documents) if isinstance(max_new_tokens, int) else max_new_tokens
        if min(limits, default=0) < 0:
            raise DuoGenError(f"max_new_tokens must be 0 or more, not {min(limits)}.")
        contexts = [self._layout(document) for document in documents]
        cancelled = cancelled or (lambda: False)
        with torch.inference_mode(), self.decoding():
            keys = [self._keys(*pair) for pair in zip(documents, contexts)]
            self._caches = caches = self._reuse(keys, connector)
            rows = []
            for index, (document, context) in enumerate(zip(documents, contexts)):
                told, plain = on_token and partial(on_token, index), constraints[index] is not None
                rows.append(
                    _Row(
                        caches[index],
                        TextStream(told) if self.prompted is None or plain else MarkedStream(told),
                        self._next_position(context, document),
                        seeds[index] if seeds is not None else 0,
                        limits[index],
                        self._seen(keys[index]),
                        constraints[index],
                    )
                )
                if not self._prefill(caches[index], keys[index], document, context, connector, cancelled):
                    return [Continuation("", "interrupted", 0) for _ in documents]
            self._write(rows, sampling, connector, cancelled)
        return [Continuation(row.stream.finish(), row.stop, row.count, row.caption or "") for row in rows]

    def _write(
        self, rows: Sequence[_Row], sampling: TokenSampling, connector: Connector | None, cancelled: Callable[[], bool]
    ) -> None:
        """Writes on until every row has stopped, or all are cancelled."""
        batch = None
        try:
            while rows:
                if cancelled():
                    for row in rows:
                        row.stop = "interrupted"
                    break
                tokens = self._choose(rows, sampling)
                going = [row for row, token in zip(rows, tokens) if self._takes(row, token)]
                if len(going) < len(rows) and batch is not None:
                    ended, batch = batch, None
                    self._give_back(ended)
                rows = going
                if len(rows) > 1 and batch is None:
                    batch = self.batch([row.cache.kv for row in rows])
                for together in [rows] if batch is not None else [[row] for row in rows]:
                    self._write_tokens(together, batch, connector)
                if sampling.repetition_penalty != 1:
                    for row in rows:
                        row.seen = torch.cat([row.seen, row.seen.new_tensor([row.token])])
        finally:
            if batch is not None:
                self._give_back(batch)

    def _give_back(self, batch: Any) -> None:
        try:
            batch.give_back()
        except BaseException:  # memory may run out here: some layers have the new tokens then, some not
            self.clear_cache()
            raise

    def _takes(self, row: _Row, token: int) -> bool:
        """Whether the row goes on with this token; where it does not, it knows why."""
        if token == self.control.bov:
            row.stop = "picture"
        elif token in (self.control.im_end, self.control.end_of_text):
            row.caption = row.stream.end()
            row.stop = "end" if row.caption is None else "picture"
        # Looked ahead: a text of exactly as many tokens as it may have that ends here has ended.
        elif row.count < row.limit and len(row.cache.keys) < self.max_positions:
            row.token, row.count = token, row.count + 1
            row.written.append(token)
            row.caption = row.stream.put(token_bytes(self.tokenizer, token))
            if row.constraint is not None:
                row.constraint.take(token)
                if row.constraint.done:
                    row.stop = "end"
                    return False
            if row.caption is None:
                return True
            row.stop = "picture"
        return False

    def _write_tokens(self, rows: Sequence[_Row], batch: Any, connector: Connector | None) -> None:
        """Runs the last token of each row through the layers; without a batch there is one row."""
        caches, ids = [row.cache for row in rows], [row.token for row in rows]
        positions = torch.cat([row.position for row in rows], dim=1)
        embeds = self.embed(torch.tensor(ids, device=self.device)[:, None], None, None)
        if batch is None:
            run = partial(self.run_layers, embeds, positions, caches[0].kv)
        else:
            run = partial(self.run_rows, embeds, positions, batch)
        self._advance(caches, [[token] for token in ids], connector, run)
        for row in rows:
            row.position = row.position + 1

    def encode(
        self, document: Document, connector: Connector, cancelled: Callable[[], bool] | None = None
    ) -> ContextStates:
        """The states of all tokens before the <BOV> of the picture that comes next. After continue_: no MLLM work.

        Raises Cancelled between two chunks of tokens; what ran before stays in the cache.
        """
        context = self._layout(document)
        with torch.inference_mode():
            keys = self._keys(document, context)
            (cache,) = self._reuse([keys], connector)
            self._caches = [*(each for each in self._caches if each is not cache), cache]
            if not self._prefill(cache, keys, document, context, connector, cancelled or (lambda: False)):
                raise Cancelled("Reading the conversation was stopped.")
            cache.project(connector)
            total = torch.cat(cache.sums)
            cache.sums = [total]
            states = connector.finish(total[: len(context.ids)])
        where = context.context_of(segment=connector.config.segment)
        return ContextStates(states.clone(), where.last_segment, where.frame_ends, connector.config.drop)

    # -- how ----------------------------------------------------------------------------------------------------------

    def _layout(self, document: Document) -> Layout:
        marker = None
        if self.prompted is not None:
            document, marker = self.prompted.taught(document), self.prompted.marker
        counts = image_token_counts(document, self.image_processor)
        context = layout(document, self.tokenizer, counts, open_turn=True, marker=marker)
        if len(context.ids) >= self.max_positions:
            raise DuoGenError(
                f"The conversation is {len(context.ids)} tokens long, but this model takes {self.max_positions}; "
                "leave out early turns or use smaller images."
            )
        return context

    def _grids(self, document: Document) -> list[tuple[int, ...]]:
        return [picture_grid(picture, self.image_processor) for picture in document.pictures]

    def _next_position(self, context: Layout, document: Document) -> Tensor:
        """Position of the first token after the context, [P, 1, 1]: that of one more text token."""
        ids = [*context.ids, self.control.im_end]
        return self.positions(ids, self._grids(document))[:, None, -1:].to(self.device)

    def _keys(self, document: Document, context: Layout) -> list[int]:
        keys = list(context.ids)
        for span, picture in zip(context.pictures, document.pictures):
            key = -1 - int(picture.digest[:15], 16)  # below zero, where no token id is
            for i in range(span.start, span.end):
                if keys[i] == self.control.image_pad:
                    keys[i] = key
        return keys

    def _stamp(self) -> Any:
        """Changes when weights are changed in place (training between two calls), replaced or moved."""
        return self.device, _versions(self.model)

    def _prefill(
        self,
        cache: PrefixCache,
        keys: list[int],
        document: Document,
        context: Layout,
        connector: Connector | None,
        cancelled: Callable[[], bool],
    ) -> bool:
        """Brings a cache that has a prefix of this context to the whole, with its last hidden state; False: cancelled
        on the way."""
        done = len(cache.keys)
        if done == len(keys):
            return True
        grids = self._grids(document)
        spans = context.pictures
        pad = self.control.image_pad  # what stands around these needs no look at the picture
        new = [i for i, span in enumerate(spans) if pad in context.ids[max(span.start, done) : span.end]]
        patches = grid = None
        if new:
            patches, grid = picture_patches([document.pictures[i] for i in new], self.image_processor)
            patches, grid = patches.to(self.device), grid.to(self.device)
        ids = torch.tensor([context.ids[done:]], device=self.device)
        positions = self.positions(context.ids, grids)[:, None, done:].to(self.device)
        embeds = self.embed(ids, patches, grid)
        # Cut before and after each picture, so that a rerolled one leaves what stands before it.
        cuts = {end for span in spans for end in (span.start, span.end) if end > done}
        for end in sorted({*cuts, *range(done + CHUNK, len(keys), CHUNK), len(keys)}):
            if cancelled():
                return False
            start = len(cache.keys)
            chunk = slice(start - done, end - done)
            run = partial(self.run_layers, embeds[:, chunk], positions[..., chunk], cache.kv)
            self._advance([cache], [keys[start:end]], connector, run)
        return True

    def _reuse(self, contexts: Sequence[Sequence[int]], connector: Connector | None) -> list[PrefixCache]:
        """A cache for each of these contexts, cropped to the prefix that fits: the longest ones first; or a new one."""
        stamp = self._stamp()
        self._caches = [cache for cache in self._caches if cache.stamp == stamp]
        if connector is not None:
            made_by = weakref.ref(connector), _versions(connector)
            for cache in self._caches:
                if cache.connector != made_by:
                    cache.connector, cache.sums, cache.waiting, cache.known = made_by, [], [], 0
        fits = [
            (cache.common(keys, len(cache.keys) if connector is None else cache.known), -index, number)
            for number, cache in enumerate(self._caches)
            for index, keys in enumerate(contexts)
        ]
        found: dict[int, PrefixCache] = {}
        taken: set[int] = set()
        for common, minus, number in sorted(fits, reverse=True):
            if -minus not in found and number not in taken:
                taken.add(number)
                found[-minus] = self._caches[number]
                self._crop(found[-minus], common)
        for index in range(len(contexts)):
            if index not in found:
                found[index] = PrefixCache(self.new_cache(), stamp)
                found[index].connector = None if connector is None else made_by
        return [found[index] for index in range(len(contexts))]

    def _crop(self, cache: PrefixCache, keep: int) -> None:
        remove = len(cache.keys) - keep
        if remove == 0:
            return
        self.crop_cache(cache.kv, remove)
        del cache.keys[keep:]
        cache.ends = {end: state for end, state in cache.ends.items() if end <= keep}
        if cache.known > keep:
            summed = cache.known - len(cache.waiting)
            del cache.waiting[max(keep - summed, 0) :]
            if keep < summed:
                cache.sums = [torch.cat(cache.sums)[:keep]]
            cache.known = keep

    def _advance(
        self,
        caches: Sequence[PrefixCache],
        keys: Sequence[Sequence[int]],
        connector: Connector | None,
        run: Callable[[Callable[[int, Tensor], None] | None], Tensor],
    ) -> None:
        """Runs tokens through the layers (`run`, with what is to see each), and notes them in the caches.

        keys: of one conversation as many as come, of several one token each; `run` gives [rows, n, hidden_size].
        """
        total: Tensor | None = None
        states: list[Tensor] = []

        def add(layer: int, h: Tensor) -> None:  # at once, so that a long context's layers never lie side by side
            nonlocal total
            total = connector.project_layer(layer, h[0], total)

        def keep(layer: int, h: Tensor) -> None:
            if layer >= connector.config.first_layer:
                states.append(h.to(states[0].device) if states else h)

        try:
            hidden = run(None if connector is None else keep if len(keys[0]) == 1 else add)
            layers = torch.cat(states, dim=1) if states else None
            for row, cache in enumerate(caches):
                cache.keys.extend(keys[row])
                cache.ends[len(cache.keys)] = hidden[row, -1:].clone()  # of a chunk, not the whole chunk
                if connector is None:
                    continue
                if total is not None or len(cache.waiting) == WAITING:
                    cache.project(connector)
                cache.sums.append(total) if total is not None else cache.waiting.append(layers[row : row + 1])
                cache.known += len(keys[row])
        except BaseException:
            # Some layers have these tokens, some not.
            self._caches = [cache for cache in self._caches if cache not in caches]
            raise

    def _choose(self, rows: Sequence[_Row], sampling: TokenSampling) -> list[int]:
        """The next token of each row. Control tokens other than <BOV> and the end of the turn cannot be written."""
        logits = self.logits(torch.cat([row.cache.last for row in rows])).float()
        if self._banned is None or self._banned.device != logits.device:
            self._banned = self._banned_ids(logits.shape[-1]).to(logits.device)
        logits = logits.masked_fill(self._banned, float("-inf"))
        for row, values in zip(rows, logits):
            if row.constraint is not None:
                row.constraint.mask(values)
        seeds, positions = [row.seed for row in rows], [len(row.cache.keys) for row in rows]
        return choose(logits, sampling, seeds, positions, [row.seen for row in rows], [row.written for row in rows])

    def _seen(self, keys: Sequence[int]) -> Tensor:
        """Ids that a repetition penalty is for: words. That an image was drawn or a turn ended is no repetition."""
        control = control_set(self.tokenizer)
        words = [key for key in keys if key >= 0 and key not in control]
        return torch.tensor(words, dtype=torch.long, device=self.device)

    def _banned_ids(self, width: int) -> Tensor:
        banned = torch.ones(width, dtype=torch.bool)
        allowed = {self.control.bov, self.control.im_end, self.control.end_of_text}
        control = control_set(self.tokenizer) - allowed
        written = [i for i in self.tokenizer.get_vocab().values() if i < width and i not in control]
        banned[written] = False
        return banned
