"""A prompt file of this room: what is put into it as part of the instruction, and what as data of strangers.

    asking = Asking("answer.txt");  asking.messages({"least": "2"}, {"request": text});  asking.digest

Names of the taxonomy and numbers of the preset are the user's own and stand in the text as they are. Everything that a
language model or a page may have written is delimited data (`duogen_core.data.llm.messages`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from string import Template

from duogen_core.data.llm.messages import Message, load_prompt, messages

PROMPTS = Path(__file__).with_name("prompts")


class Asking:
    def __init__(self, name: str) -> None:
        self.prompt = load_prompt(PROMPTS / name)
        self.digest = hashlib.sha256(self.prompt.encode()).hexdigest()[:16]

    def messages(self, values: Mapping[str, str], data: Mapping[str, str]) -> list[Message]:
        plain = {name: value.replace("$", "$$") for name, value in values.items()}
        return messages(Template(self.prompt).safe_substitute(plain), data)
