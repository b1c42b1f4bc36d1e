"""What is wrong with a plan, by rules: no model judges here, so the same plan has the same faults everywhere.

    faults_of(plan, wish, request, instructions)  ->  [Fault("repeated", 3, "The picture of part 3 is …"), …]

In: a Plan, the Wish that code found in its request, the request, and the texts that the writer was given (lesson,
examples). Out: faults in the order of the parts, each with its rule, its part (from 1; None: the whole plan), and a
sentence that a writer can be told. `writing.py` asks again for single captions, `evaluate plan` counts. A caption is
what a picture shows.

The rules look at words, so they see that a caption is copied, repeated or names nothing of its step, and not whether it
is true. Texts and captions of all languages are read; what is said about "it" and "the same" covers English, German,
Spanish, French and Chinese.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cache, lru_cache
from itertools import pairwise

from duogen_core.planning.language import WORDS, language_of, plain, words_of
from duogen_core.planning.plan import Member, Plan, appears
from duogen_core.planning.requests import Wish

ALIKE = 0.9  # two texts are the same words where more than this share is
RUN = 5  # words in a row that are copied and no accident; of Chinese and Japanese, RUN_CHARACTERS
RUN_CHARACTERS = 10
FEWEST_WORDS, FEWEST_CHARACTERS = 4, 5  # of a caption that says enough
READ = 300  # words of a text that are compared; comparing costs their square
FEWEST_PICTURES = 3  # of a guide or a story where no number was asked

# Rules about one caption: a writer can be asked for it alone.
CAPTION_RULES = ("incomplete", "copied", "repeated", "same_words", "unnamed", "cast")
# Seen and counted, and not asked for again: a painter that edits follows "Tie the ends together" as well, and
# what slips into another script is one word of many.
NOTED_RULES = ("instruction", "mixed")
PLAN_RULES = ("cut_off", "count", "unpictured", "few_pictures", "pictured", "language")


@dataclass(frozen=True)
class Fault:
    rule: str
    part: int | None
    sentence: str


def faults_of(plan: Plan, wish: Wish, request: str = "", instructions: Sequence[str] = ()) -> list[Fault]:
    runs = runs_of(instructions) - runs_of([request])  # words of the request belong in its answer
    found = list(_of_plan(plan, wish))
    earlier: list[tuple[int, str]] = []
    for number, part in enumerate(plan.parts, 1):
        if cut_off(part.text):
            found.append(Fault("cut_off", number, f"The text of part {number} stops in the middle of a sentence."))
        shows = part.picture.shows if part.picture is not None else ""
        if mixed(f"{part.text} {shows}", wish.language, request):
            found.append(Fault("mixed", number, f"Part {number} has words in the letters of another language."))
        if part.picture is None:
            if wish.pictured and not (wish.count is not None and len(plan.pictures) >= wish.count):
                found.append(Fault("unpictured", number, f"Part {number} has no picture; describe one."))
            continue
        caption = part.picture.shows
        found += _of_caption(plan, number, caption, request, runs)
        for other, before in earlier:
            if alike(caption, before):
                found.append(
                    Fault(
                        "repeated",
                        number,
                        f"The picture of part {number} is described in the same words as that of part {other}; say "
                        "what has changed.",
                    )
                )
                break
        earlier.append((number, caption))
    return found


def _of_plan(plan: Plan, wish: Wish) -> Iterable[Fault]:
    drawn, number = len(plan.pictures), len(plan.parts)
    if wish.pictured is False and drawn:
        yield Fault("pictured", None, "The request wants no pictures; leave every picture out.")
    if wish.pictured and not drawn:
        yield Fault("unpictured", None, "The plan has no picture; describe one for each part.")
    counted, what = (drawn, "pictures") if wish.pictured else (number, "parts")
    asked = (
        f"{wish.count}" if wish.count not in (None, counted)
        else f"at least {wish.least}" if counted < (wish.least or 0)
        else f"at most {wish.most}" if wish.most is not None and counted > wish.most
        else ""
    )  # fmt: skip
    if asked:
        yield Fault("count", None, f"The request asks for {asked}; the plan has {counted} {what}.")
    few = wish.count is None and wish.most is None and wish.kind in ("howto", "story") and wish.pictured
    if few and 0 < drawn < FEWEST_PICTURES:
        yield Fault("few_pictures", None, f"The plan has {drawn} pictures; expected at least {FEWEST_PICTURES}.")
    written = language_of(" ".join([*(part.text for part in plan.parts), plan.title]))
    if wish.language and written and written != wish.language:
        yield Fault("language", None, f"The request is in {wish.language}, the texts are in {written}; write as it is.")


def _of_caption(plan: Plan, number: int, caption: str, request: str, runs: set[tuple[str, ...]]) -> Iterable[Fault]:
    part, where = plan.parts[number - 1], f"The picture of part {number}"
    if reason := incomplete(caption):
        yield Fault("incomplete", number, f"{where} {reason}; name everything that is seen in it.")
    if INSTRUCTION.search(plain(caption).lower()):
        yield Fault("instruction", number, f"{where} says what to do; describe what is seen when it is done.")
    if runs & runs_of([caption]):
        yield Fault("copied", number, f"{where} is copied from the instructions; describe what this part shows.")
    if part.text.strip() and alike(caption, part.text):
        yield Fault("same_words", number, f"{where} repeats the text; describe what is seen, not what is done.")
    missing = [one.name for one in plan.cast if appears(one, part.text) and not named(one, caption)]
    if missing:
        yield Fault("cast", number, f"{where} does not name {', '.join(missing)}, who is in its text.")
    if names_nothing(caption, [part.text, plan.title, request, *(f"{one.name} {one.looks}" for one in plan.cast)]):
        yield Fault("unnamed", number, f"{where} names nothing of its part; name the things that the text is about.")


# ------------------------------------------------------------ sentences

ENDS = re.compile(r"[.!?…。！？：:)\]\"'”’»」』*`）]\s*$")
# What no sentence ends with: it was cut off there. Few and certain: "turn it on" is whole, and so is "let it in".
_LOOSE_ENDS_TEXT = """
and or the a an of with to your my its their our from into und oder der die das dem den ein eine einen mit von zu
zum zur y o el la los las un una de del con para su et ou le les des une avec pour
"""
LOOSE_ENDS = frozenset(_LOOSE_ENDS_TEXT.split())


OTHER_SCRIPTS = re.compile(r"[\u0400-\u04ff\u0590-\u06ff\u3041-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def mixed(text: str, language: str, request: str) -> bool:
    """Whether words of a text in Latin letters stand in others, as models of two languages write them. A request that
    is about another script ("Write hello in Chinese") names it or has it."""
    if language not in WORDS or not OTHER_SCRIPTS.search(text) or OTHER_SCRIPTS.search(request):
        return False
    about = r"chin|japan|korea|russ|arab|hebr|cyrill|mandarin|kanji|calligra|kalligra|coréen|árabe|letters|alphabet"
    return not re.search(about, request, re.IGNORECASE)


def cut_off(text: str) -> bool:
    """Whether a text stops in the middle. A missing full stop alone is a habit of writing, not a fault."""
    text = text.rstrip()
    if not text or ENDS.search(text):
        return False
    words = words_of(text)
    return text[-1] in ",;-–—(、，" or (len(words) > 3 and words[-1] in LOOSE_ENDS)


# ------------------------------------------------------------ captions

# Small models write file names, forms of files and sizes where a picture is to be described.
FILE_NAME = re.compile(
    r"\b[\w-]+\.(?:png|jpe?g|gif|webp|svg|bmp|tiff?|pdf|mp4)\b|\b(?:jpe?g|png|gif|webp|svg|docx|pptx)\b"
    r"|\b\d+\s?[x×]\s?\d+\s?(?:px|pixels?)\b|(?<![\w-])\w+(?:-\w+){4,}|(?<![\w-])[a-z]+(?:-\w+){1,3}-\d+\b",
    re.IGNORECASE,
)
URL = re.compile(r"\bhttps?://|\bwww\.|!\[|\]\(", re.IGNORECASE)
PLACEHOLDER = re.compile(
    r"<[^>\n]{0,60}>|\[(?:image|picture|insert|caption|description)[^\]\n]{0,60}\]|\bBOV\b|lorem ipsum|\bplaceholder\b"
    r"|^(?:a )?(?:caption|image|picture|photo|illustration|description)"
    r"(?: (?:here|of (?:the )?(?:step|picture|image|part|scene)))?[\s\d.:]*$"
    r"|\bstep \d+(?: (?:done|completed|finished|image|picture))?[.:]?$"
    r"|^\W*(?:none|n/?a|null|nothing|no picture|no image)\W*$",
    re.IGNORECASE,
)
# Where a caption speaks of something that it does not name. "The same boat" and "this paper boat" do name it.
_NO_NOUN = (
    r"(?=\s*(?:$|[.,;:!?]"
    r"|(?:as|but|and|with|in|on|from|for|again|before|above|thing|one|way|step|picture|image|process)\b))"
)
UNNAMED = {
    "en": re.compile(
        r"^(?:it|they|he|she|them)(?:'s|'re)?\b|^(?:\w+\s){1,2}?(?:it|them)\b(?!\s?self)"
        r"|^(?:this|that|these|those)\s(?:is|are|was|were|has|have|should|will|can|shows?)\s"
        r"(?!(?:an?|the|one|two|three|how|some|\d|all|our|my|your)\b)"
        rf"|^(?:this|that)\s(?:step|part|process|time|action)\b|\bthe\ssame\b{_NO_NOUN}|^same\s(?:as|thing)\b"
        r"|\b(?:as|see|like)\s(?:above|before|below|previously)\b|^ditto\b"
        r"|\b(?:previous|above|last|preceding)\s(?:image|picture|step|photo)\b"
    ),
    "de": re.compile(
        r"^(?:es|er|sie)\s(?:ist|sind|wird|werden|hat|haben|liegt|steht|sieht|geht)\b"
        r"|^(?:dies|das)\s(?:ist|sind|zeigt)\s(?!(?:ein|eine|der|die|das)\b)"
        r"|\b(?:das|die|der)(?:selbe|\sgleiche)n?\b(?=\s*(?:$|[.,;:!?]|(?:wie|aber|und|mit|noch)\b))"
        r"|\bwie\s(?:oben|vorher|zuvor)\b|\bdas\s(?:vorige|letzte)\sbild\b"
    ),
    "es": re.compile(
        r"^(?:ella|él|ellos|ellas)\s|^(?:esto|eso|esta|este)\s(?:es|muestra)\s(?!(?:un|una|el|la|los|las)\b)"
        r"|\blo\smismo\b|\bigual\sque\s(?:antes|arriba|la\santerior)\b"
        r"|\b(?:la\simagen|el\spaso)\santerior\b"
    ),
    "fr": re.compile(
        r"^(?:il|elle|ils|elles|ça|cela|ceci)\s|^c'est\s(?!(?:un|une|le|la|les)\b)"
        r"|\bla\smême\schose\b|\bcomme\s(?:avant|ci-dessus)\b|\bl'image\sprécédente\b"
    ),
    "zh": re.compile(
        r"^(?:它|他|她)们?|同上|如上|^(?:和|与|跟)(?:上面|之前|前面)(?:一样|相同)|上一(?:张|幅|步)|^这(?:一步|个步骤|样)"
    ),
}  # fmt: skip


# What tells nothing more: "a picture of folding" shows as much as "folding".
A_PICTURE_OF = re.compile(
    r"^(?:an?|the|this)?\s?(?:(?:close-?up|detailed|simple)\s)?(?:picture|image|photo|illustration|drawing|bild|foto|imagen"
    r"|dessin|ilustraci[oó]n|zeichnung)\s(?:of|showing|von|vom|der|des|de|del|d')\s?|的?(?:图片|图像|照片|插图|圖片|照片|图)[。.]?$"
)


def incomplete(caption: str) -> str:
    """Says in what way a caption is none; "" where it is one."""
    text = plain(caption).lower()
    if FILE_NAME.search(text) or URL.search(text):
        return "is a file name or an address"
    if PLACEHOLDER.search(text):
        return "is a placeholder"
    words = words_of(text)
    seen = [word for word in words[:READ] if word not in _function_words(_language(text))]
    if seen and (most := max(map(seen.count, set(seen)))) > 3 and most > 0.5 * len(seen):
        return "says one word again and again"
    if len(seen) > 8 and 3 * len(set(seen)) <= len(seen):
        return "says the same words again and again"
    words = words_of(A_PICTURE_OF.sub("", text))
    spaced = [word for word in words if len(word) > 1 or word.isascii()]
    if len(spaced) < FEWEST_WORDS and len(words) - len(spaced) + 2 * len(spaced) < FEWEST_CHARACTERS + 3 * bool(spaced):
        return f"has only {len(words)} words"
    for language in (language_of(text),) if language_of(text) in UNNAMED else UNNAMED:
        if match := UNNAMED[language].search(text):
            return f'says "{match[0].strip()}" and not what that is'
    return ""


SHOWS = re.compile(
    r"^(?:the|this|an?)\s(?:picture|image|photo|illustration|drawing|scene)\s(?:shows|depicts|of)\s", re.I
)
# "Pour the milk into a bowl" and "You will need a bowl" are texts of a guide. A noun right after the verb would be a
# thing that is seen ("Cut flowers", "Open window"), so an article or the like has to stand there.
INSTRUCTION = re.compile(
    r"^(?:how\sto|you\s(?:will|should|can|need|must|have)|you'll|make\ssure|be\s(?:sure|careful)|don't|let's)\b"
    r"|^(?:(?:then|now|next|first|finally),?\s|(?:gently|carefully|slowly)\s|in\s(?:a|the)\s[\w\s]{1,30},\s)?"
    r"(?:add|attach|bake|bend|boil|bring|choose|clean|close|collect|combine|connect|cover|cut|dip|draw|drill|drop|dry|fill"
    r"|find|finish|fold|gather|get|give|glue|hang|heat|hold|insert|install|keep|knead|lay|let|lift|loosen|make|mark|measure"
    r"|melt|mix|move|open|paint|pick|place|pour|prepare|press|pull|push|put|remove|repeat|rinse|roll|rub|screw|secure|select"
    r"|serve|set|sew|shape|soak|spread|sprinkle|start|stir|stitch|take|tie|tighten|trim|turn|twist|use|wait|wash|water|whisk"
    r"|wipe|wrap)\s(?:the|an?|it|them|your|its|some|all|each|both|two|three|one|together|in|into|on|onto|up|out|off|over|from"
    r"|around|about|gently|again|down|with|this|that|these|until|for)\b"
    r"|^(?:du|sie|man)\s(?:brauchst|musst|sollst|kannst|benötigst|müssen|brauchen|muss|braucht)\b|^necesitas\b"
)


def alike(one: str, other: str) -> bool:
    """Whether two texts are the same words, articles and the like aside.

    Words like "the" and "on" are most of a caption: counted, they would make "a white sheet folded in half on a table"
    and "… in quarters on a table" the same picture.
    """
    one, other = (SHOWS.sub("", plain(text)) for text in (one, other))
    language = _language(f"{one} {other}")
    first, second = content_words(one, language), content_words(other, language)
    if min(len(first), len(second)) < 2:
        first, second = words_of(one), words_of(other)
    first, second = first[:READ], second[:READ]
    if not first or not second:
        return False
    if 2 * min(len(first), len(second)) <= ALIKE * (len(first) + len(second)):
        return False  # the lengths alone say no, and comparing costs more
    return SequenceMatcher(None, first, second, autojunk=False).ratio() > ALIKE


def runs_of(texts: Iterable[str]) -> set[tuple[str, ...]]:
    """Returns every run of RUN words of these texts; of languages without spaces, of RUN_CHARACTERS characters."""
    found: set[tuple[str, ...]] = set()
    for text in texts:
        words = words_of(text)
        for length, spaced in ((RUN, True), (RUN_CHARACTERS, False)):
            for start in range(len(words) - length + 1):
                run = tuple(words[start : start + length])
                if any(len(word) > 1 for word in run) is spaced:
                    found.add(run)
    return found


# ------------------------------------------------------------ what a caption names

# In the lists that tell languages apart because requests have them; in a caption they are seen.
_ASKED_FOR_TEXT = """
picture pictures image images story recipe guide steps step bild bildern geschichte rezept cuento historia receta imagen
imágenes pasos paso histoire recette étape étapes
"""
_ASKED_FOR = frozenset(_ASKED_FOR_TEXT.split())
_CHINESE = frozenset("的了在是和与着把被上中里有个一这那用到也就都并将及从向对为以")
# Words of captions that name nothing of their own, and what is done rather than seen.
_GENERAL_TEXT = """
image picture photo illustration drawing scene view shot close closeup close-up background foreground showing shown
shows show seen visible person people someone man woman hand hands step part detail final finished complete
completed done result process fold folding folded cut cutting put putting place placing placed add adding added make
making made mix mixing mixed take taking turn turning turned open opening opened closing closed hold holding held
pour pouring poured stir stirring stirred press pressing pressed pull pulling push pushing lift lifting remove
removing removed use using used start starting begin beginning look looking looks stand standing stands sit sitting
walk walking go going get getting keep keeping let see try work working ready new good nice small large big little
left right top bottom front back side first second third next last one two three four five bild foto szene schritt
hände zeigt zeigen nah ansicht hintergrund imagen escena paso persona mano manos muestra vista fondo
"""
_GENERAL = frozenset(_GENERAL_TEXT.split())


@cache
def _function_words(language: str) -> frozenset[str]:
    """The words of grammar of one language: "hat" is one in German, and is seen in English."""
    return frozenset(WORDS.get(language or "en", "").split()) - _ASKED_FOR | _CHINESE


@lru_cache(maxsize=512)
def _language(text: str) -> str:
    return language_of(text)


def content_words(text: str, language: str | None = None) -> list[str]:
    """Returns the words of a text without those of grammar; language: of which, if not the text's own."""
    grammar = _function_words(_language(text) if language is None else language)
    return [word for word in words_of(text) if word not in grammar and (len(word) > 1 or not word.isascii())]


_ACCENTS = dict.fromkeys(range(0x300, 0x370))


def _same_word(one: str, other: str) -> bool:
    """Whether two words are forms of one: folding and folded, Blatt and Blätter; not boat and boot."""
    if one == other:
        return True
    one, other = (unicodedata.normalize("NFD", word).translate(_ACCENTS) for word in (one, other))
    if len(one) < 3 or len(other) < 3 or not (one.isascii() or other.isalpha()):
        return False
    shared = next((k for k, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
    return shared >= max(3, 0.7 * max(len(one), len(other)))


def named(member: Member, caption: str) -> bool:
    """Whether a caption names one of the cast, be it by one word of the name: "the fox" is "Milo the fox"."""
    if appears(member, caption):
        return True
    words = words_of(caption)
    parts = content_words(member.name) or words_of(member.name)
    if all(len(part) == 1 and not part.isascii() for part in parts):  # a name in characters, in part
        joined = "".join(words)
        pairs = ["".join(pair) for pair in pairwise(parts)] or parts
        return any(pair in joined for pair in pairs)
    return any(_same_word(part, word) for part in parts for word in words)


def names_nothing(caption: str, about: Iterable[str]) -> bool:
    """Whether a caption shares no word that names something with the texts that it belongs to.

    Captions in another language than their text say nothing here: painters that know English alone are given English.
    """
    about = [text for text in about if text]
    of_caption, of_text = _language(caption), _language(" ".join(about))
    if of_caption and of_text and of_caption != of_text:
        return False
    language = of_caption or of_text
    words = {word for word in content_words(caption, language)[:READ] if word not in _GENERAL}
    known = {word for text in about for word in content_words(text, language)[:READ]}
    if any(not word.isascii() and len(word) == 1 for word in words):  # in characters: two in a row
        joined = " ".join("".join(words_of(text)) for text in about)
        characters = words_of(caption)[:READ]
        pairs = ["".join(pair) for pair in pairwise(characters) if not set(pair) & _CHINESE]
        return not any(pair in joined for pair in pairs) and not words & {word for word in known if len(word) > 1}
    return not any(_same_word(word, other) for word in words for other in known)
