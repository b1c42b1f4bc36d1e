"""A model that sees as a critic: it looks at one image of an answer and says by a schema what is wrong with it.

    critic = critic_of(client)          any `duogen_core.llm.client.Client` that takes images: our own Qwen-VL, a server
    critic.review(asked) -> Review      `duogen_core.review`, whose loop draws what is refused again

What the model is shown: the request, the text, what was to be drawn, who and what stays the same, some of the earlier
images, and the new one last. All of it is material of others and goes in as data (`llm.messages`). What comes back is
checked against SCHEMA, by the server or, for models run here, token by token while it is written.
InterleaveThinker's critic has a format of its own: `duogen_core.planning.interleave_thinker`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duogen_core.document import Picture
from duogen_core.errors import DuoGenError
from duogen_core.llm.answers import AnswerError
from duogen_core.llm.messages import fitted, load_prompt, messages, picture_part
from duogen_core.planning.interleave_thinker import InterleaveThinkerCritic, is_critic
from duogen_core.review import Asked, Critic, Review

if TYPE_CHECKING:
    from duogen_core.llm.client import Client

PROMPT = Path(__file__).with_name("prompts") / "critic.txt"
MOST_EARLIER = 4  # images that go along, besides the new one
SIDE, EARLIER_SIDE = 1024, 512  # pixels of the longer side: details count in the new image, likeness in the others
MAX_TOKENS = 1000  # at most three texts of 300 characters: an answer is never cut off
BEST = 10  # the highest score that a model gives
# Without line breaks and quotes in a text, nothing that a small model writes can run on for ever.
_TEXT = {"type": "string", "pattern": r'^[^"\\\n]{0,300}$'}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "seen": _TEXT,  # looking comes before judging
        "wrong": _TEXT,
        "shows": {"type": "boolean"},
        "same_cast": {"type": "boolean"},
        "score": {"type": "integer", "enum": list(range(BEST + 1))},
        "prompt": _TEXT,
    },
    "required": ["seen", "wrong", "shows", "same_cast", "score", "prompt"],
    "additionalProperties": False,
}


def critic_of(client: Client, cancelled: Callable[[], bool] | None = None) -> Critic:
    """Returns the critic that this model is: one trained for it by its own format, any other by ours."""
    if not client.sees:
        raise DuoGenError(
            f"The critic {client.endpoint.model} takes no images; choose a model that sees, such as a Qwen-VL."
        )
    return (InterleaveThinkerCritic if is_critic(client.endpoint.model) else ModelCritic)(client, cancelled)


class ModelCritic:
    """A `duogen_core.review.Critic`."""

    def __init__(self, client: Client, cancelled: Callable[[], bool] | None = None) -> None:
        self.client, self.cancelled = client, cancelled

    def review(self, asked: Asked) -> Review:
        answer = self.client.ask(
            messages_for(asked), SCHEMA, max_tokens=MAX_TOKENS, check=_check, cancelled=self.cancelled
        )
        value = answer.value
        good = value["shows"] and value["same_cast"]
        return Review(
            shows=value["shows"],
            same_cast=value["same_cast"],
            wrong="" if good else value["wrong"].strip(),
            prompt="" if good else value["prompt"].strip(),
            score=value["score"] / BEST,
        )


def _check(value: Any) -> None:
    if not (value["shows"] and value["same_cast"]) and not value["wrong"].strip():
        raise AnswerError("You refuse the image but do not say what is wrong with it; fill in wrong.")


def messages_for(asked: Asked) -> list[dict[str, Any]]:
    """Returns the messages of one review. Each image has a line before it, so that none is taken for another."""
    earlier = chosen(asked.earlier)
    others = "The images before it come earlier in the conversation." if earlier else "There is no other image."
    data = {"request": asked.request, "text": asked.text, "asked": asked.tried or asked.prompt}
    prompt = load_prompt(PROMPT).replace("${others}", others)
    if asked.cast:
        prompt = prompt.replace("${cast}", "\nThis is who and what stays the same from image to image:\n${cast}\n")
        data["cast"] = "\n".join(f"{name}: {looks}" for name, looks in asked.cast)
    else:
        prompt = prompt.replace("${cast}", "")
    *system, user = messages(prompt, data)
    parts: list[dict[str, Any]] = [{"type": "text", "text": user["content"]}]
    for number, picture in enumerate(earlier, 1):
        parts += [
            {"type": "text", "text": f"Earlier image {number}:"},
            picture_part(fitted(picture.pixels, EARLIER_SIDE)),
        ]
    parts += [{"type": "text", "text": "The image to check:"}, picture_part(fitted(asked.picture.pixels, SIDE))]
    return [*system, {"role": "user", "content": parts}]


def chosen(earlier: Sequence[Picture]) -> list[Picture]:
    """At most MOST_EARLIER: the first, in which everybody was drawn for the first time, and the last ones."""
    if len(earlier) <= MOST_EARLIER:
        return list(earlier)
    return [earlier[0], *earlier[len(earlier) - MOST_EARLIER + 1 :]]
