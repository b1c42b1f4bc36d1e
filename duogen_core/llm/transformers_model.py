"""Answers with any instruction model that transformers knows, run here: a Hugging Face folder or a GGUF file.

    model = load_transformers_model("Qwen3-4B-Instruct", placement)          a transport for the client
    client = Client(Endpoint(HERE, "Qwen3-4B"), transport=model)

A causal model reads text; an image-text model (`sees`) looks at the pictures of the messages as well. Both use their
own chat template, and transformers' `generate` with left-padded batches. How a token is chosen is the core's
(`mllm/token_sampling.py`): so a seed, a schema and a penalty mean the same as for the core's own MLLM, and a row of a
batch is what it is alone (but for rounding). A folder's own code is never run; weights are safetensors or GGUF.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from duogen_core.device_options import DEFAULT, Placement
from duogen_core.devices import choose_device, choose_dtype
from duogen_core.errors import Cancelled, DuoGenError, first_line, is_out_of_memory
from duogen_core.files import read_json
from duogen_core.llm.answers import Answer
from duogen_core.llm.local_model import LocalModel, Request, answered
from duogen_core.llm.messages import Message, without_marks
from duogen_core.mllm.constrained import Constraint
from duogen_core.mllm.loading import read_generation
from duogen_core.mllm.token_sampling import TokenSampling, choose
from duogen_core.net.client import EndpointError

PROCESSORS = ("preprocessor_config.json", "processor_config.json")  # of which transformers 5 writes the second alone
# How the common families end a turn; some files name only the end of a text.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eot|>", "<|endoftext|>", "<|end_of_text|>")


class TransformersModel(LocalModel):
    """generation: how the model's own file wants tokens chosen, as `TokenSampling.resolved` reads it."""

    def __init__(
        self, model: nn.Module, tokenizer: Any, processor: Any = None, generation: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.processor = model.eval(), tokenizer, processor
        self.generation = generation or {}
        if not getattr(self._speaker(), "chat_template", None):
            raise DuoGenError(
                "The model has no chat template, so it is no instruction model; take one whose name says Instruct."
            )
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
        named = model.generation_config.eos_token_id
        vocabulary = tokenizer.get_vocab()
        ends = [
            *(named if isinstance(named, list) else [named]),
            tokenizer.eos_token_id,
            *map(vocabulary.get, TURN_ENDS),
        ]
        rows = model.get_input_embeddings().num_embeddings
        self.ends = list(dict.fromkeys(end for end in ends if end is not None and 0 <= end < rows))
        if not self.ends:
            raise DuoGenError("The model names no token that ends an answer (eos_token_id); take an instruction model.")
        from transformers import GenerationConfig

        # `generate` takes from it whatever it is not told: a repetition penalty before ours, forced tokens, lengths.
        model.generation_config = GenerationConfig()
        text = getattr(model.config, "text_config", None) or model.config
        self.max_positions = int(getattr(text, "max_position_embeddings", None) or 1 << 30)

    @property
    def sees(self) -> bool:
        return self.processor is not None

    # -- reading the messages -----------------------------------------------------------------------------------------

    def constraint(self, schema: Mapping[str, Any]) -> Constraint:
        return Constraint(schema, self.tokenizer, self.ends)

    def prompt(self, body: Mapping[str, Any]) -> tuple[dict[str, Tensor], bool]:
        """The model's inputs, of one row: input_ids and attention_mask [1, n], and what belongs to pictures.

        Those with pictures are written alone: processors pad them in ways of their own.
        """
        pictures: list[Any] = []
        messages = [self._message(message, pictures) for message in body["messages"]]
        if pictures and not self.sees:
            raise EndpointError(
                "The model cannot look at images, and one was sent along; take one that can.", again=False
            )
        text = self._templated(messages, dict(body.get("chat_template_kwargs") or {}))
        if pictures:
            inputs = dict(self.processor(text=[text], images=[pictures], add_special_tokens=False, return_tensors="pt"))
            if "token_type_ids" not in signature(self.model.forward).parameters:  # of the tokenizer, not of the model
                inputs.pop("token_type_ids", None)
        else:
            ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")
            inputs = {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"]}
        length = inputs["input_ids"].shape[1]
        if length >= self.max_positions:
            raise EndpointError(
                f"The model cannot answer: the request is {length} tokens long, and it takes {self.max_positions}.",
                again=False,
            )
        return inputs, bool(pictures)

    def _message(self, message: Message, pictures: list[Any]) -> Message:
        """A message as the chat template wants it. Control tokens that a text spells out are broken up."""
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        found: list[Message] = []
        for part in parts:
            if part["type"] == "text":
                found.append({"type": "text", "text": without_marks(part["text"])})
            else:
                from PIL import Image

                code = part["image_url"]["url"].partition("base64,")[2]
                pictures.append(Image.open(io.BytesIO(base64.b64decode(code)), formats=("PNG",)).convert("RGB"))
                found.append({"type": "image"})
        if not self.sees:  # templates of text models take nothing but a text
            return {"role": message["role"], "content": "\n\n".join(p["text"] for p in found if p["type"] == "text")}
        return {"role": message["role"], "content": found}

    def _speaker(self) -> Any:
        """Who has the chat template."""
        return self.processor if self.sees and getattr(self.processor, "chat_template", None) else self.tokenizer

    def _templated(self, messages: list[Message], options: dict[str, Any]) -> str:
        how = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False} | options
        try:
            return self._speaker().apply_chat_template(messages, **how)
        except Exception as error:  # jinja2's, raised by the template itself
            if messages[0]["role"] != "system" or len(messages) < 2:
                raise DuoGenError(f"The model's chat template fails: {first_line(error)}.") from None
        # Gemma's and others take no system turn: what it says opens the user's.
        (system, user), rest = messages[:2], messages[2:]
        if self.sees:
            content = [*system["content"], {"type": "text", "text": "\n\n"}, *user["content"]]
        else:
            content = f"{system['content']}\n\n{user['content']}"
        return self._templated([{"role": user["role"], "content": content}, *rest], options)

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(
        self,
        requests: Sequence[Request],
        on_text: Callable[[int, str], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> list[Answer | EndpointError]:
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        sampling = TokenSampling(requests[0].temperature, reply_penalty=requests[0].reply_penalty)
        rows = _Rows(self, requests, sampling.resolved(self.generation), on_text, cancelled)
        inputs = self._padded([request.prompt for request in requests])
        config = GenerationConfig(
            do_sample=False, max_new_tokens=max(rows.limits), eos_token_id=self.ends,
            pad_token_id=self.tokenizer.pad_token_id, use_cache=True,
        )  # fmt: skip
        with torch.inference_mode(), rows.stoppable():
            self.model.generate(
                **{name: value.to(self._device()) for name, value in inputs.items()}, generation_config=config,
                logits_processor=LogitsProcessorList([rows.processor]),
                stopping_criteria=StoppingCriteriaList([rows.stopping]),
            )  # fmt: skip
        return rows.answers()

    def _padded(self, prompts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        if len(prompts) == 1:
            return dict(prompts[0])
        width = max(prompt["input_ids"].shape[1] for prompt in prompts)
        pads = {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 0}
        return {
            name: torch.cat(
                [nn.functional.pad(each[name], (width - each[name].shape[1], 0), value=pad) for each in prompts]
            )
            for name, pad in pads.items()
        }

    def _device(self) -> torch.device:
        return self.model.get_input_embeddings().weight.device if not hasattr(self, "device") else self.device

    def clear_cache(self) -> None:
        """Nothing is kept between two answers; `placement.place_mllm` asks for this."""


class _Rows:
    """What is written in one `generate`: chooses each row's next token, streams it, and says when the row has ended."""

    def __init__(
        self,
        owner: TransformersModel,
        requests: Sequence[Request],
        sampling: TokenSampling,
        on_text: Callable[[int, str], None] | None,
        cancelled: Callable[[], bool] | None,
    ) -> None:
        self.owner, self.sampling, self.on_text = owner, sampling, on_text
        self.cancelled = cancelled or (lambda: False)
        self.prompts = [request.prompt["input_ids"][0] for request in requests]
        self.seeds = [request.seed for request in requests]
        self.limits = [min(each.limit, owner.max_positions - len(p)) for each, p in zip(requests, self.prompts)]
        self.constraints = [request.constraint for request in requests]
        self.written: list[list[int]] = [[] for _ in requests]
        self.finish = [""] * len(requests)
        self.streams = [_stream(owner.tokenizer) for _ in requests] if on_text else []

    def processor(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Leaves one token a row. scores: [rows, vocabulary]."""
        scores = scores.float().clone()
        for row, constraint in enumerate(self.constraints):
            if constraint is not None and not self.finish[row]:
                constraint.mask(scores[row])
        seen = []
        if self.sampling.repetition_penalty != 1:
            seen = [torch.cat([p, torch.tensor(w, dtype=p.dtype)]) for p, w in zip(self.prompts, self.written)]
        positions = [len(prompt) + len(written) for prompt, written in zip(self.prompts, self.written)]
        tokens = choose(scores, self.sampling, self.seeds, positions, seen, self.written)
        chosen = torch.full_like(scores, float("-inf"))
        chosen[torch.arange(len(tokens)), tokens] = 0
        return chosen

    def stopping(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        if self.cancelled():
            raise Cancelled("Writing was stopped.")
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if self.finish[row]:
                continue
            if token in self.owner.ends:
                self.finish[row] = "stop"
                continue
            self.written[row].append(token)
            if self.streams and (piece := self.streams[row](token)):
                self.on_text(row, piece)
            constraint = self.constraints[row]
            if constraint is not None:
                constraint.take(token)
                if constraint.done:
                    self.finish[row] = "stop"
                    continue
            if len(self.written[row]) >= self.limits[row]:
                self.finish[row] = "length"
        return torch.tensor([bool(finish) for finish in self.finish], device=input_ids.device)

    def stoppable(self) -> Any:
        """While open, the model looks before each layer whether it is still to write: a long prompt takes long."""

        def look(*_: Any) -> None:
            if self.cancelled():
                raise Cancelled("Writing was stopped.")

        return _Hooks(self.owner.model, look)

    def answers(self) -> list[Answer | EndpointError]:
        answers: list[Answer | EndpointError] = []
        for prompt, written, finish in zip(self.prompts, self.written, self.finish):
            text = self.owner.tokenizer.decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            answers.append(answered(text, finish or "length", len(prompt), len(written)))
        return answers


class _Hooks:
    def __init__(self, model: nn.Module, look: Callable[..., None]) -> None:
        self.layers = [layer for each in model.modules() if isinstance(each, nn.ModuleList) for layer in each]
        self.look = look

    def __enter__(self) -> None:
        self.handles = [layer.register_forward_pre_hook(self.look) for layer in self.layers]

    def __exit__(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()


def _stream(tokenizer: Any) -> Callable[[int], str | None]:
    """Token ids -> whole characters, as soon as they are whole."""
    from tokenizers.decoders import DecodeStream

    stream, rust = DecodeStream(skip_special_tokens=True), tokenizer.backend_tokenizer
    return lambda token: stream.step(rust, token)


# ---------------------------------------------------------------- loading


def load_transformers_model(path: str | Path, placement: Placement = DEFAULT) -> TransformersModel:
    path = Path(path)
    device = choose_device(placement.device)
    if path.is_file():
        from duogen_core.llm.gguf_model import load_causal

        # Blocks as the file has them take least memory; whole weights are faster, and wanted where a type is named.
        dtype = None if placement.dtype == "auto" else choose_dtype(placement.dtype, device, torch.float32, 0)
        model, tokenizer = load_causal(path, dtype)
        made = TransformersModel(model, tokenizer)
    else:
        made = _from_folder(path)
    return _placed(made, placement, keep=path.is_file())


def _placed(made: TransformersModel, placement: Placement, keep: bool) -> TransformersModel:
    from dataclasses import replace

    from duogen_core.placement import place_mllm

    if keep:  # of the type that it was read in
        placement = replace(placement, dtype="auto")
    return place_mllm(made, replace(placement, compile=False))


def _from_folder(path: Path) -> TransformersModel:
    value = read_json(path / "config.json", "configuration of a language model")
    kind = value.get("model_type") if isinstance(value, dict) else None
    if not any(path.glob("*.safetensors")):
        raise DuoGenError(f"{path} holds no weights as safetensors, the only kind that is read from a folder.")
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    sees = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and any((path / name).is_file() for name in PROCESSORS)
    if not sees and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            raise DuoGenError(f"{path} has no {PROCESSORS[0]}, without which a {kind} model reads no images.")
        raise DuoGenError(
            f"{path}/config.json says model_type {kind!r}, which is no language model of transformers "
            f"{transformers.__version__}; the folder's own code is never run."
        )
    how, generation = {"local_files_only": True}, read_generation(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, **how)
        weights = {"config": config, "use_safetensors": True, "dtype": "auto", **how}
        if sees:
            processor = AutoProcessor.from_pretrained(path, trust_remote_code=False, **how)
            model = AutoModelForImageTextToText.from_pretrained(path, trust_remote_code=False, **weights)
            return TransformersModel(model, processor.tokenizer, processor, generation)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **how)
        model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False, **weights)
        return TransformersModel(model, tokenizer, generation=generation)
    except DuoGenError:
        raise
    except Exception as error:  # the library has no error of its own
        if is_out_of_memory(error):
            raise
        raise DuoGenError(f"{path} cannot be loaded as a language model: {first_line(error)}.") from None
