"""bench connector, mllm and dit: each part of the loop by itself, ours and the libraries'.

connector   hidden states of all layers -> text condition, streamed against concatenate-and-project
mllm        tokens a second while writing, the states collected on the way, greedily and at a temperature
dit         the steps of one image, after any number of earlier images; under frame_causal as in a loop, where keys and
            values of all earlier images but the newest are kept already
In: sizes or Components. Out: a Report with a row a case.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from duogen_core.bench.measure import (
    BenchError,
    Comparison,
    Report,
    Stopped,
    Tell,
    allowed,
    alternate,
    difference,
    machine,
    measure_memory,
    now,
)
from duogen_core.bench.models import REQUEST, SENTENCE, level
from duogen_core.bench.reference import Stock, Uncached, project, sample, stock_transformer, write
from duogen_core.connector import Connector
from duogen_core.dit.cosmos import PackedCosmos
from duogen_core.document import Document, Text
from duogen_core.mllm.base import Mllm
from duogen_core.picture_sampling import working_device, working_dtype
from duogen_core.pipeline import with_text
from duogen_core.sampling import sample_picture, sigmas

ALLOWED_STATES = 1e-5
ALLOWED_LATENT = 1e-4


# ---------------------------------------------------------------- connector


def run_connector(
    connector: Connector, *, tokens: int, repeat: int, device: torch.device, dtype: torch.dtype, tell: Tell,
    stopped: Stopped,
) -> Report:  # fmt: skip
    config = connector.config
    report = Report(
        "connector",
        "the normalised states of all layers concatenated, then projected",
        {"tokens": tokens, "layers": config.num_layers, "hidden_size": config.hidden_size,
         "cross_width": config.cross_width, "repeat": repeat},
        machine(device, dtype),
    )  # fmt: skip
    row = Comparison(f"{tokens} tokens")
    generator = torch.Generator(device).manual_seed(0)
    shape = (config.num_layers, tokens, config.hidden_size)
    layers = torch.randn(shape, generator=generator, device=device, dtype=dtype) * 3 + 0.5

    def streamed(states: Iterator[Tensor]) -> Tensor:
        total: Tensor | None = None
        for number, h in enumerate(states):
            total = connector.project_layer(number, h, total)
        return connector.finish(total)

    # While the MLLM runs, a layer's output is gone when the next one comes: who needs all of them has to keep them.
    with torch.inference_mode():
        tell("memory", 0.0)
        mine = measure_memory(row.ours, lambda: streamed(iter(layers)), device)
        other = measure_memory(row.reference, lambda: project(connector, [h.clone() for h in layers]), device)
        row.agree(difference(mine, other), allowed(ALLOWED_STATES, dtype))
        for number in range(repeat):
            if stopped():
                break
            tell("seconds", number / repeat)
            found = alternate(
                row, lambda: streamed(iter(layers)), lambda: project(connector, list(layers)), number, device
            )
            row.agree(difference(*found), allowed(ALLOWED_STATES, dtype))
    if row.ratios:
        report.rows.append(row)
    row.extra["memory_share"] = round(row.ours.peak_bytes / row.reference.peak_bytes, 5)
    report.stopped = stopped()
    return report


# ---------------------------------------------------------------- mllm


class TokenTimes:
    """Notes when each token was chosen; the streamer that `generate` takes, and the on_token that ours takes."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        if value.ndim < 2 or value.shape[-1] == 1:  # first comes the prompt
            self.times.append(now())

    def end(self) -> None:
        pass

    def token(self, _text: str) -> None:
        self.times.append(now())

    def seconds_per_token(self, tokens: int) -> float:
        """From the first token to the last one: reading the prompt is not in it."""
        if tokens < 2:
            raise BenchError("This model writes less than two tokens here; there is nothing to measure.")
        return (self.times[-1] - self.times[0]) / (tokens - 1)


def run_mllm(
    mllm: Mllm, connector: Connector, *, context: int, tokens: int, temperature: float, repeat: int, known: bool,
    tell: Tell, stopped: Stopped,
) -> Report:  # fmt: skip
    """known: the model is a random one of models.py, which writes one text at a temperature as well. It is measured
    once more with all tokens about equally likely, which is the worst case for choosing one."""
    device, dtype = mllm.device, mllm.model.dtype
    report = Report(
        "mllm",
        "transformers' generate with its own cache and output_hidden_states",
        {"context": context, "tokens": tokens, "temperature": temperature, "repeat": repeat},
        machine(device, dtype),
    )
    document = long_document(mllm, context)
    report.settings["context"] = len(mllm._layout(document).ids)
    cases = [("greedy", 0.0, False), (f"temperature {temperature:g}", temperature, False)]
    if known:
        cases.append((f"temperature {temperature:g}, all tokens about equally likely", temperature, True))
    for place, (name, heat, levelled) in enumerate(cases):
        if stopped():
            break
        row = Comparison(name)
        arranged = level(mllm.model) if levelled else None
        share = lambda number, p=place, n=name: tell(n, (p + number / (repeat + 1)) / len(cases))  # noqa: E731
        try:
            # Two generators of random numbers choose unlike tokens where more than one is likely.
            same_text = not heat or (known and not levelled)
            _write_case(row, mllm, connector, document, tokens, heat, same_text, repeat, device, stopped, share)
        finally:
            if arranged is not None:
                mllm.model.lm_head.weight = arranged
        if row.ratios:
            report.rows.append(row)
    report.stopped = stopped()
    return report


def long_document(mllm: Mllm, context: int) -> Document:
    """A request of about `context` tokens."""
    length = len(mllm.tokenizer.encode(SENTENCE, add_special_tokens=False))
    return Document().begin_turn("user", [Text(REQUEST + SENTENCE * max(1, round(context / length)))])


def _write_case(
    row: Comparison, mllm: Mllm, connector: Connector, document: Document, tokens: int, temperature: float,
    same_text: bool, repeat: int, device: torch.device, stopped: Stopped, tell: Callable[[int], None],
) -> None:  # fmt: skip
    def ours() -> tuple[str, float]:
        mllm.clear_cache()
        clock = TokenTimes()
        out = mllm.continue_(
            document, connector=connector, max_new_tokens=tokens, temperature=temperature, on_token=clock.token
        )
        return out.text, clock.seconds_per_token(out.tokens)

    def theirs() -> tuple[str, float, tuple[Tensor, ...]]:
        clock = TokenTimes()
        # top_k 0: its usual 50 would choose from another distribution than ours does
        heat = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        out = write(mllm, document, tokens, streamer=clock, **heat)
        return out.text, clock.seconds_per_token(len(out.ids)), out.states

    for number in range(repeat + 1):  # the first round warms up
        if stopped():
            break
        tell(number)
        (text, mine), (other, its, states) = alternate(Comparison(row.case), ours, theirs, number, device)
        if same_text:
            row.agree(0.0 if text == other else float("inf"), ALLOWED_STATES)
        if number:
            row.ours.seconds.append(mine)
            row.reference.seconds.append(its)
        elif not temperature:
            condition = mllm.encode(with_text(document, text), connector).states
            with torch.inference_mode():
                expected = project(connector, states)
            # The last token was chosen and not read any more: generate has no states of it.
            row.agree(difference(condition[: len(expected)], expected), allowed(ALLOWED_STATES, mllm.model.dtype))
    if row.ratios:
        row.extra |= {
            "ours_tokens_per_second": round(1 / row.ours.median, 2),
            "reference_tokens_per_second": round(1 / row.reference.median, 2),
        }


# ---------------------------------------------------------------- dit


def run_dit(
    dit: PackedCosmos, *, references: Sequence[int], text_tokens: int, steps: int, size: tuple[int, int],
    repeat: int, tell: Tell, stopped: Stopped, guidance: float = 2.0,
) -> Report:  # fmt: skip
    device, dtype, causal = working_device(dit), working_dtype(dit), dit.config.attention == "frame_causal"
    note = ", which knows full attention only: it is timed for the same image" if causal else ""
    report = Report(
        "dit",
        f"diffusers' stock transformer over every frame{note}",
        {"references": list(references), "text_tokens": text_tokens, "steps": steps, "size": list(size),
         "guidance": guidance, "repeat": repeat, "attention": dit.config.attention},
        machine(device, dtype),
    )  # fmt: skip
    cases = {
        Comparison(f"{count} earlier images" if count != 1 else "1 earlier image"): DitCase(
            dit, count, text_tokens, steps, size, guidance, device, dtype
        )
        for count in references
    }
    rounds = len(cases) * (repeat + 1)
    with torch.inference_mode():
        for place, (row, case) in enumerate(cases.items()):
            if stopped():
                break
            tell(f"{row.case}: memory, operations", place / rounds)
            case.next_image()
            mine = measure_memory(row.ours, case.ours, device)
            other = measure_memory(row.reference, case.reference, device)
            row.agree(difference(mine, case.uncached() if causal else other), allowed(ALLOWED_LATENT, dtype))
            case.next_image()
            row.extra = {"ours_flops": counted(case.ours), "reference_flops": counted(case.reference)}
        # Case by case in every round, not round by round in every case: how much a case takes against another one is
        # a figure as well.
        for number in range(repeat):
            for place, (row, case) in enumerate(cases.items()):
                if stopped():
                    break
                tell(row.case, ((number + 1) * len(cases) + place) / rounds)
                case.next_image()
                alternate(row, case.ours, case.reference, number, device)
    report.rows = [row for row in cases if row.ratios]
    if len(report.rows) > 1:
        report.totals = growth(report.rows)
    report.stopped = stopped()
    return report


class DitCase:
    """One image drawn after `count` others: the same latents, text and noise for both sides.

    next_image() changes the newest of the earlier images and the newest text, which are then new to what ours keeps.
    """

    def __init__(
        self, dit: Any, count: int, text_tokens: int, steps: int, size: tuple[int, int], guidance: float,
        device: torch.device, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        from duogen_core.dit.frame_cache import FrameCache

        self.dit, self.guidance = dit, guidance
        width, height = size
        generator = torch.Generator().manual_seed(3)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device, dtype)

        self.noise = random(1, 16, height // 8, width // 8)
        self.frames = [random(1, 16, height // 8, width // 8) for _ in range(count)]
        self.text = random(1, text_tokens, dit.config.text_embed_dim)
        # The text grows with the images: each stands behind its share of it; what guidance drops comes last.
        self.ends = [text_tokens * (k + 1) // (count + 2) for k in range(count)]
        self.hidden = (text_tokens - max(1, text_tokens // (count + 2)), text_tokens)
        self.times = sigmas(steps).to(device)
        self.cache = FrameCache() if dit.config.attention == "frame_causal" else None
        self.stock = stock_transformer(dit)

    def next_image(self) -> None:
        """Changes what is new to each image of a loop, and lets ours keep what it had before."""
        start, end = self.hidden
        self.text = torch.cat([self.text[:, :start], self.text[:, start:end] + 0.01, self.text[:, end:]], dim=1)
        if self.frames:
            if self.cache is not None:
                self.prepare(self.frames[:-1])
            self.frames[-1] = self.frames[-1] + 0.01

    def prepare(self, frames: Sequence[Tensor]) -> Any:
        texts = [(self.text, None), (self.text, self.hidden)]
        return self.dit.prepare(frames, texts, self.noise.shape, frame_ends=self.ends[: len(frames)], cache=self.cache)

    def ours(self) -> Tensor:
        prepared = self.prepare(self.frames)
        return sample_picture(prepared.velocities, self.noise.float(), self.times, guidance=self.guidance)

    def reference(self) -> Tensor:
        start, end = self.hidden
        dropped = torch.cat([self.text[:, :start], self.text[:, end:]], dim=1)
        how = Stock(self.stock, self.dit.config.clean_timestep, self.dit.config.concat_padding_mask)
        how.condition(self.frames, self.noise)
        return sample(
            lambda x, t: how.velocity(x, t, self.text),
            lambda x, t: how.velocity(x, t, dropped),
            self.noise, self.times, self.guidance,
        )  # fmt: skip

    def uncached(self) -> Tensor:
        how = Uncached(self.dit, self.ends)
        how.condition(self.frames, self.noise)
        return sample(
            lambda x, t: how.velocity(x, t, self.text),
            lambda x, t: how.velocity(x, t, self.text, self.hidden),
            self.noise, self.times, self.guidance,
        )  # fmt: skip


def counted(call: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products, convolutions and attention in call()."""

    def attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return sdpa_flop_count(query, key, value)

    def product(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * math.prod(x) * weight[0]

    # torch knows the GPU's attention kernels, not the CPU's; nor the product that linear.py takes from oneDNN.
    own = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        own[torch.ops.mkldnn._linear_pointwise] = product
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        call()
    return counter.get_total_flops()


def growth(rows: Sequence[Comparison]) -> dict[str, Any]:
    """How much more the last case takes than the first, in seconds and by counting operations."""
    first, last = rows[0], rows[-1]
    found = {}
    for side in ("ours", "reference"):
        flops = last.extra[f"{side}_flops"] / first.extra[f"{side}_flops"]
        pairs = zip(getattr(last, side).seconds, getattr(first, side).seconds)
        found[f"{side}_last_over_first"] = round(statistics.median(a / b for a, b in pairs), 4)
        found[f"{side}_last_over_first_counted"] = round(flops, 4)
    return found
