"""Plan <-> the Markdown that a person edits:

    # A paper boat

    Style: flat drawing, plain background

    Cast:
    - Paper: a square white sheet

    ---

    Fold the paper in half.

    Image: A square white sheet, folded in half on a table.
    Looks at: 1 (cast), 2 (before)
    Size: 1024x768

    ---

    Done.

Between two lines of --- stands one part: its text, and after it, if it has an image, what that shows. "Looks at" and
"Size" may be left out. A line of the text that would be read as one of these is written with a backslash before it.
Every Plan whose texts have no white space at their ends comes back as it was.
"""

from __future__ import annotations

import re

from duogen_core.errors import DuoGenError
from duogen_core.planning.plan import WHY, Member, Part, Plan, PlannedPicture, Reference

LINE = re.compile(r"-{3,}\s*")
LABEL = re.compile(r"(image|picture|looks at|size|style|cast)\s*[:：]\s*(.*)", re.IGNORECASE | re.DOTALL)
ESCAPED = re.compile(r"\\*(-{3,}\s*$|(image|picture|looks at|size|style|cast)\s*[:：]|#\s)", re.IGNORECASE)
REFERENCE = re.compile(r"(?:image\s*|picture\s*)?(\d{1,4})\s*(?:\((\w+)\))?", re.IGNORECASE)
MEMBER = re.compile(r"\s*[-*]\s+((?:\\.|[^:：\\])+?)\s*[:：]\s*(.*)")
SIZE = re.compile(r"(\d{1,6})\s*[x×*]\s*(\d{1,6})", re.IGNORECASE)
NO_IMAGES = "none"  # of "Looks at": the painter sees no earlier image


def plan_to_markdown(plan: Plan) -> str:
    head = [f"# {_line(plan.title)}"] if plan.title else []
    if plan.style:
        head.append(f"Style: {_line(plan.style)}")
    if plan.cast:
        head.append("\n".join(["Cast:", *(f"- {_name(one.name)}: {_line(one.looks)}" for one in plan.cast)]))
    pieces = ["\n\n".join(head)] if head else []
    for part in plan.parts:
        lines = [_escaped(part.text)] if part.text else []
        if part.picture is not None:
            about = [f"Image: {_line(part.picture.shows)}"]
            if part.picture.looks_at is not None:
                seen = ", ".join(f"{one.picture} ({one.why})" for one in part.picture.looks_at)
                about.append(f"Looks at: {seen or NO_IMAGES}")
            if part.picture.size is not None:
                about.append("Size: {}x{}".format(*part.picture.size))
            lines.append("\n".join(about))
        pieces.append("\n\n".join(lines))
    return "\n\n---\n\n".join(pieces if head else ["", *pieces]).strip() + "\n"


def plan_from_markdown(text: str) -> Plan:
    """Reads the form above. Raises a DuoGenError that names the part and the line's words."""
    blocks = _blocks(text.replace("\r\n", "\n").replace("\r", "\n"))
    # A person may leave the head out, and its line with it: what does not read as one is the first part.
    title, style, cast, rest = _head(blocks[0])
    blocks = ([rest] if rest else []) + blocks[1:]
    parts = [_part(block, number) for number, block in enumerate((block for block in blocks if any(block)), 1)]
    return Plan(title, tuple(parts), cast, style)


def _blocks(text: str) -> list[list[str]]:
    """The lines between lines of ---, without empty lines at the ends."""
    blocks: list[list[str]] = [[]]
    for line in text.split("\n"):
        if LINE.fullmatch(line):
            blocks.append([])
        else:
            blocks[-1].append(line.rstrip())
    return [_trimmed(block) for block in blocks]


def _trimmed(lines: list[str]) -> list[str]:
    while lines and not lines[0].strip():
        lines = lines[1:]
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    return lines


def _head(lines: list[str]) -> tuple[str, str, tuple[Member, ...], list[str]]:
    title = style = ""
    cast: list[Member] = []
    in_cast = False
    for number, line in enumerate(lines):
        label = LABEL.fullmatch(line)
        kind = label[1].casefold() if label else ""
        member = MEMBER.fullmatch(line)
        if line.startswith("# ") and not title and not cast and not style:
            title = line[2:].strip()
        elif kind == "style" and not style:
            style, in_cast = label[2].strip(), False
        elif kind == "cast":
            in_cast = True
        elif in_cast and member:
            cast.append(Member(re.sub(r"\\(.)", r"\1", member[1]), member[2]))
        elif in_cast and line.strip():
            raise DuoGenError(f"The plan's cast has the line {line.strip()!r:.80}; write each as “- name: looks”.")
        elif line.strip():
            return title, style, tuple(cast), _trimmed(lines[number:])
    return title, style, tuple(cast), []


def _part(lines: list[str], number: int) -> Part:
    start = next((i for i, line in enumerate(lines) if _kind(line) in ("image", "picture")), None)
    if start is None:
        for line in lines:
            if _kind(line) in ("looks at", "size"):
                raise DuoGenError(
                    f"Part {number} of the plan has “{line.strip()[:80]}” but no line “Image: …” before it."
                )
        return Part(_unescaped(lines))
    shows: list[str] = []
    looks_at, size, current = None, None, shows
    for line in lines[start:]:
        kind, label = _kind(line), LABEL.fullmatch(line)
        if kind in ("image", "picture"):
            if shows:
                raise DuoGenError(
                    f"Part {number} of the plan has two images; write --- on a line of its own between them."
                )
            shows.append(label[2])
        elif kind == "looks at":
            looks_at, current = _looks_at(label[2], number), None
        elif kind == "size":
            size, current = _size(label[2], number), None
        elif line.strip() and current is None:
            raise DuoGenError(
                f"Part {number} of the plan has {line.strip()!r:.80} after its image; text stands before the image, or "
                "in the next part, after a line of ---."
            )
        elif line.strip():
            current.append(line.strip())  # a long description, wrapped by hand
        elif any(shows):
            current = None  # an empty line ends it: text below would be painted and never read
    return Part(_unescaped(_trimmed(lines[:start])), PlannedPicture(" ".join(shows).strip(), looks_at, size))


def _kind(line: str) -> str:
    label = LABEL.fullmatch(line)
    return label[1].casefold() if label else ""


def _looks_at(text: str, number: int) -> tuple[Reference, ...]:
    if text.strip().casefold().rstrip(".") in (NO_IMAGES, ""):
        return ()
    found = []
    for entry in re.split(r"\s*[,;]\s*", text.strip()):
        one = REFERENCE.fullmatch(entry)
        if one is None or (one[2] and one[2].casefold() not in WHY):
            raise DuoGenError(
                f"The image of part {number} looks at {entry!r:.60}; write numbers of earlier images, such as "
                "“Looks at: 1 (cast), 2 (before)”, or none."
            )
        found.append(Reference(int(one[1]), one[2].casefold() if one[2] else "before"))
    return tuple(found)


def _size(text: str, number: int) -> tuple[int, int]:
    found = SIZE.fullmatch(text.strip())
    if found is None:
        raise DuoGenError(f"The image of part {number} has the size {text.strip()!r:.40}; write it like 1024x768.")
    return int(found[1]), int(found[2])


def _escaped(text: str) -> str:
    return "\n".join(f"\\{line}" if ESCAPED.match(line) else line.rstrip() for line in text.split("\n"))


def _unescaped(lines: list[str]) -> str:
    return "\n".join(line[1:] if line.startswith("\\") and ESCAPED.match(line) else line for line in lines)


def _line(text: str) -> str:
    return " ".join(text.split())


def _name(text: str) -> str:
    return re.sub(r"([\\:：])", r"\\\1", _line(text))
