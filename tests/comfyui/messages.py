"""Collects the sentences that a user of the nodes may read, from the source: what locales/<language>/messages.json
translates. `python messages.py zh` prints those that the Chinese one lacks, to be filled in, and says which ones it has
for nothing.

Looked at are the modules that the nodes import, and in them: the texts of errors that are raised, and what is said on a
node (`say`, `notice`, `warn`). A name in a text is followed to what the function assigned to it, a call to what the
function returns. A piece that depends on a condition is a sentence of its own, for a place in the whole one.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]
LOCALES = PACK / "locales"
FOREIGN = {
    "shown",
    "shortened",
    "first_line",
    "str",
    "repr",
    "join",
    "int",
    "len",
    "format",
    "next",
}  # these pass on what they get
SAYS = {"say", "refuse", "report", "lacking", "notice", "note", "warn", "notices", "on_notice"}
DEEPEST = 6
MOST = 12  # ways in which the pieces of one sentence combine


@dataclass(frozen=True)
class Module:
    name: str
    path: Path

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text("utf-8"))

    @cached_property
    def package(self) -> list[str]:
        parts = self.name.split(".")
        return parts if self.path.name == "__init__.py" else parts[:-1]

    @cached_property
    def imports(self) -> dict[str, str]:
        """Name in this module -> full name, of what it imports at run time."""
        found: dict[str, str] = {}
        hidden = {
            id(inner)
            for node in ast.walk(self.tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for inner in ast.walk(node)
        }
        for node in ast.walk(self.tree):
            if id(node) in hidden:
                continue
            if isinstance(node, ast.Import):
                found |= {each.asname or each.name: each.name for each in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = self.package[: len(self.package) - node.level + 1] if node.level else []
                source = ".".join([*base, *filter(None, [node.module])])
                found |= {each.asname or each.name: f"{source}.{each.name}" for each in node.names}
        return found

    @cached_property
    def definitions(self) -> dict[str, ast.AST]:
        """Functions, and constants, at the top of the module and in its classes."""
        found: dict[str, ast.AST] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.setdefault(node.name, node)
        for node in self.tree.body:
            if isinstance(node, ast.Assign):
                found |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
        return found


@cache
def modules() -> dict[str, Module]:
    """Everything that the nodes import, ours alone."""
    files = {}
    for top in ("nodes", "duogen_core"):
        for path in (PACK / top).rglob("*.py"):
            parts = path.relative_to(PACK).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            files[name] = Module(name, path)
    seen: dict[str, Module] = {}
    waiting = [name for name in files if name.startswith("nodes")]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen[name] = files[name]
        for full in files[name].imports.values():
            waiting += [each for each in (full, full.rpartition(".")[0]) if each in files]
    return seen


@dataclass
class Scope:
    """A function in its module: what names stand for there."""

    module: Module
    function: ast.AST | None
    depth: int = 0

    def resolve(self, name: str) -> list[tuple[ast.AST, Scope]]:
        """The expressions that may have been assigned to a name."""
        here = [
            node.value
            for node in (ast.walk(self.function) if self.function else ())
            if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.NamedExpr)) and node.value is not None
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name) and target.id == name
        ]
        if here:
            return [(each, self) for each in here]
        if found := self.module.definitions.get(name):
            return [(found, Scope(self.module, None, self.depth))]
        source, _, last = self.module.imports.get(name, "").rpartition(".")
        if source in modules() and last in modules()[source].definitions:
            return [(modules()[source].definitions[last], Scope(modules()[source], None, self.depth))]
        return []

    def deeper(self, function: ast.AST | None = None) -> Scope:
        return Scope(self.module, function or self.function, self.depth + 1)


def templates() -> set[str]:
    """All sentences, as templates with named places."""
    found: set[str] = set()
    for module in modules().values():
        for function, expression in _said(module):
            whole, parts = texts(expression, Scope(module, function))
            found |= set(whole) | parts
    return {text.strip() for text in found if _is_words(text)} | _things() | _names()


def _names() -> set[str]:
    """What functions are given as the name of a file, where it says more: "{name} (named by {where})"."""
    calls = (node for module in modules().values() for node in ast.walk(module.tree) if isinstance(node, ast.Call))
    given = (each for call in calls for each in (*call.args, *(keyword.value for keyword in call.keywords)))
    found = {_plain(each) for each in given if isinstance(each, ast.JoinedStr)}
    return {text for text in found if re.fullmatch(r"\{\w+\} \([a-z ]+\{\w+\}\)", text)}


def _plain(text: ast.JoinedStr) -> str:
    return "".join(
        "{" + _place(each.value) + "}" if isinstance(each, ast.FormattedValue) else _escaped(each.value)
        for each in text.values
    )


def _things() -> set[str]:
    """What functions are given as `what`, single words as well: "image"."""
    found: set[str] = set()
    for module in modules().values():
        for call in (node for node in ast.walk(module.tree) if isinstance(node, ast.Call)):
            name, home = _last(call.func), module
            if isinstance(call.func, ast.Attribute):
                home = modules().get(module.imports.get(_last(call.func.value), ""), module)
            elif name in module.imports:
                source, _, name = module.imports[name].rpartition(".")
                home = modules().get(source, module)
            definition = home.definitions.get(name)
            if isinstance(definition, ast.ClassDef):
                definition = next((each for each in definition.body if getattr(each, "name", "") == "__init__"), None)
            names = [each.arg for each in definition.args.args] if isinstance(definition, ast.FunctionDef) else []
            given = dict(zip(names[names[:1] == ["self"] :], call.args, strict=False))
            given |= {each.arg: each.value for each in call.keywords}
            if isinstance(definition, ast.FunctionDef) and (usual := definition.args.defaults):
                given = dict(zip(names[-len(usual) :], usual, strict=True)) | given
            if "what" in names and "what" in given:
                found |= set(texts(given["what"], Scope(module, None))[0])
    return {text for text in found if re.search(r"\b[a-z]{3}|^The ", text) and "{" not in text}


def _is_words(text: str) -> bool:
    fixed = re.sub(r"\{\w+\}", "", text)
    return bool(re.search(r"[A-Za-z]{2}", fixed)) and " " in text.strip()


def _said(module: Module) -> Iterator[tuple[ast.AST | None, ast.AST]]:
    """The expressions that a user gets to read."""

    def visit(node: ast.AST, function: ast.AST | None) -> Iterator[tuple[ast.AST | None, ast.AST]]:
        inner = node if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = _last(node.exc.func)
            if name.endswith(("Error", "Package", "TooMuch", "Refused", "Broken", "Thoughts")):
                yield from ((inner, argument) for argument in node.exc.args)
                yield from ((inner, keyword.value) for keyword in node.exc.keywords)
                yield inner, node.exc
            elif name.islower():  # raise self.error(…), raise system_failure(…)
                yield inner, node.exc
        elif isinstance(node, ast.Call) and _last(node.func) in SAYS:
            yield from ((inner, argument) for argument in node.args)
            yield from ((inner, each.value) for each in node.keywords if each.arg == "notice")
        elif isinstance(node, ast.Call) and _last(node.func).endswith("Error") and node.args:
            yield inner, node.args[0]
        elif isinstance(node, (ast.Assign, ast.keyword)):
            name = ast.unparse(node.targets[0]) if isinstance(node, ast.Assign) else node.arg
            if name == "notice":
                yield inner, node.value
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inner)

    yield from visit(module.tree, None)


def _last(function: ast.AST) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def texts(expression: ast.AST, scope: Scope) -> tuple[list[str], set[str]]:
    """(the templates that an expression may become, sentences for their places). No template: not text of ours."""
    if scope.depth > DEEPEST:
        return [], set()
    if isinstance(expression, ast.Constant):
        return ([_escaped(expression.value)], set()) if isinstance(expression.value, str) else ([], set())
    if isinstance(expression, ast.JoinedStr):
        return _joined(expression.values, scope)
    if isinstance(expression, ast.BinOp) and isinstance(expression.op, ast.Add):
        return _joined([expression.left, expression.right], scope)
    if isinstance(expression, ast.IfExp):
        return _either([expression.body, expression.orelse], scope)
    if isinstance(expression, ast.BoolOp):
        return _either(expression.values, scope)
    if isinstance(expression, (ast.Tuple, ast.List)):
        return _either(expression.elts, scope)
    if isinstance(expression, ast.Subscript):
        return _either([expression.value], scope)
    if isinstance(expression, ast.Dict):
        return _either(expression.values, scope)
    if isinstance(expression, ast.GeneratorExp):  # one of these
        return _either([each.iter for each in expression.generators], scope)
    if isinstance(expression, ast.Starred):
        return texts(expression.value, scope)
    if isinstance(expression, ast.Name):
        whole, parts = [], set()
        for value, where in scope.resolve(expression.id):
            if isinstance(value, (ast.FunctionDef, ast.ClassDef)):
                continue
            more = texts(value, where.deeper(where.function))
            whole, parts = [*whole, *more[0]], parts | more[1]
        return whole, parts
    if isinstance(expression, ast.Call):
        return _call(expression, scope)
    return [], set()


def _either(expressions: list[ast.AST], scope: Scope) -> tuple[list[str], set[str]]:
    found = [texts(each, scope) for each in expressions]
    return [text for whole, _ in found for text in whole], {text for _, parts in found for text in parts}


def _call(call: ast.Call, scope: Scope) -> tuple[list[str], set[str]]:
    """What a function of ours returns; what it is given are sentences for places."""
    name = _last(call.func)
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    if name == "get" and isinstance(call.func, ast.Attribute):  # of a dict
        return _either([call.func.value, *call.args[1:]], scope)
    if name in FOREIGN:
        return _either(arguments, scope)
    found = scope.resolve(name)
    if isinstance(call.func, ast.Attribute):  # of a module of ours, or of this class
        module = modules().get(scope.module.imports.get(_last(call.func.value), ""), scope.module)
        found = [(module.definitions[name], Scope(module, None))] if name in module.definitions else []
    if not found:
        return [], set()
    definition, where = found[-1]
    given = _either(arguments, scope)
    parts = given[1] | set(given[0])
    whole: list[str] = []
    for node in ast.walk(definition):
        values = []
        if isinstance(node, ast.Return) and node.value is not None:
            values = [node.value]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__":
            values = node.args
        for value in values:
            more = texts(value, Scope(where.module, definition, scope.depth + 1))
            whole, parts = [*whole, *more[0]], parts | more[1]
    return whole, parts


def _joined(pieces: list[ast.AST], scope: Scope) -> tuple[list[str], set[str]]:
    """Pieces in a row. One that has a few words of its own is put in; one with many is a place, and they are parts."""
    ways: list[list[str]] = []
    parts: set[str] = set()
    names: dict[str, int] = {}
    for piece in pieces:
        inner = piece.value if isinstance(piece, ast.FormattedValue) else piece
        found, more = texts(inner, scope.deeper() if inner is not piece else scope)
        parts |= more
        if isinstance(inner, ast.Constant):
            ways.append(found or [""])
            continue
        if inner is piece and found:
            ways.append(list(dict.fromkeys(found)))
            continue
        found = [text for text in dict.fromkeys(found) if _is_text(text)]
        name = _place(inner)
        names[name] = names.get(name, 0) + 1
        place = "{" + (name if names[name] == 1 else f"{name}{names[name]}") + "}"
        either = isinstance(inner, ast.IfExp) or "" in found
        short = [text for text in found if len(text) < 4 and either]
        if len(found) == 1 and "{" not in found[0] and isinstance(inner, ast.Name) and inner.id.isupper():
            ways.append(found)  # a constant
        elif any(found) and len(short) == len(found):
            ways.append(found)  # "s" or ""
        elif any(found) and len(found) < MOST and ways and ways[-1][-1].endswith("}"):
            ways.append(found)  # nothing stands between this place and the one before it
        else:
            parts |= set(found)
            later = pieces[pieces.index(piece) + 1 :][:1]
            beside = any(found) and later and isinstance(later[0], ast.FormattedValue)
            ways.append(found if beside else [place])
    combined = list(product(*ways))[:MOST] if _count(ways) <= MOST else list(product(*(way[:1] for way in ways)))
    return ["".join(each) for each in combined], parts


def _is_text(text: str) -> bool:
    """Whether there is anything but places; "" is a text."""
    return not text or bool(re.search(r"\w", re.sub(r"\{\w+\}", "", text)))


def _count(ways: list[list[str]]) -> int:
    count = 1
    for way in ways:
        count *= len(way)
    return count


def _place(expression: ast.AST) -> str:
    """A name for what is put in: the last one in the expression that is a name."""
    if isinstance(expression, ast.Call):
        inner = expression.args[0] if expression.args else expression.func
        return _place(inner)
    if isinstance(expression, ast.Attribute):
        return expression.attr.strip("_") or "value"
    if isinstance(expression, ast.Name):
        return expression.id.strip("_") or "value"
    if isinstance(expression, ast.Subscript):
        key = getattr(expression.slice, "value", None)
        return key if isinstance(key, str) and key.isidentifier() else _place(expression.value)
    for child in ast.iter_child_nodes(expression):
        if (name := _place(child)) != "value":
            return name
    return "value"


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def main(locale: str) -> None:
    file = LOCALES / locale / "messages.json"
    known = json.loads(file.read_text("utf-8")) if file.exists() else {}
    now = templates()
    missing = dict.fromkeys(sorted(now - known.keys()), "")
    print(json.dumps(missing, ensure_ascii=False, indent=2))
    for text in sorted(known.keys() - now):
        print(f"for nothing: {text}", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1])
