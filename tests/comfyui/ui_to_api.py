"""A workflow file (UI format, as the front end saves it) -> the graph the server runs (API format); and what is wrong.

The front end does this in the browser. In: the workflow, and the server's /object_info, which knows the order of
widgets. Out: {node id: {class_type, inputs}}, or a list of complaints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

DYNAMIC = "COMFY_DYNAMICCOMBO_V3"  # a combo whose choice brings widgets of its own
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC}
NOT_RUN = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}
KINDS = ("required", "optional")


def specifications(info: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, type and options of each input, in the server's order; a type that is a list is a combo's options."""
    for kind in KINDS:
        for name in info["input_order"].get(kind, []):
            specification = info["input"][kind][name]
            yield name, specification[0], specification[1] if len(specification) > 1 else {}


def widget_names(info: dict[str, Any], values: Sequence[Any]) -> list[str | None]:
    """The inputs that are widgets, in the order of these widgets_values; None is a widget of the front end's own:
    "control after generate" beside a seed, the button beside a picture to upload."""
    names: list[str | None] = []
    for name, type_, options in specifications(info):
        if isinstance(type_, list) or (type_ in WIDGETS and not options.get("forceInput")):
            names.append(name)
            if options.get("control_after_generate") or options.get("image_upload"):
                names.append(None)
            if type_ == DYNAMIC and len(names) <= len(values):
                chosen = [option for option in options["options"] if option["key"] == values[len(names) - 1]]
                inner = [each for option in chosen for kind in KINDS for each in option["inputs"].get(kind, {})]
                names += [f"{name}.{each}" for each in inner]
    return names


def convert(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] in NOT_RUN or node["mode"] != 0:
            continue
        values = node.get("widgets_values") or []
        names = widget_names(object_info[node["type"]], values)
        inputs = {name: value for name, value in zip(names, values, strict=False) if name is not None}
        inputs.update({i["name"]: links[i["link"]] for i in node["inputs"] if i["link"] is not None})
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def complaints(workflow: dict[str, Any], object_info: dict[str, Any], ignored: tuple[str, ...] = ()) -> list[str]:
    """What the server or the front end would not take: nodes, sockets, links and widget values that do not fit.
    ignored: widgets ("ckpt_name") whose choices lie on the user's disk."""
    found = [f"no node {node['type']}" for node in workflow["nodes"] if node["type"] not in {*object_info, *NOT_RUN}]
    if found:
        return found
    nodes = {node["id"]: node for node in workflow["nodes"]}
    found += list(_links(workflow, nodes, object_info))
    for node in nodes.values():
        if node["type"] not in NOT_RUN:
            found += [f"{node['type']} {node['id']}: {line}" for line in _node(node, object_info, ignored)]
    last = (workflow["last_node_id"], workflow["last_link_id"])
    if last != (max(nodes), max((link[0] for link in workflow["links"]), default=0)):
        found.append(f"last ids are {last}")
    return found


def _links(workflow: dict[str, Any], nodes: dict[int, Any], object_info: dict[str, Any]) -> Iterator[str]:
    joined = set()
    for number, source, slot, target, entry, type_ in workflow["links"]:
        output, input_ = nodes[source]["outputs"][slot], nodes[target]["inputs"][entry]
        joined |= {(number, source, slot), (number, target, entry)}
        if number not in output["links"] or input_["link"] != number:
            yield f"link {number} is not known to both its ends"
        if object_info[nodes[source]["type"]]["output"][slot] != type_ or input_["type"] not in (type_, "*"):
            yield f"link {number} carries {type_} from {output['name']} to {input_['name']}"
    for node in nodes.values():
        ends = [(link, node["id"], i) for i, output in enumerate(node["outputs"]) for link in output["links"]]
        ends += [(i["link"], node["id"], at) for at, i in enumerate(node["inputs"]) if i["link"] is not None]
        yield from (
            f"{node['type']} {node['id']} has a loose end of link {end[0]}" for end in ends if end not in joined
        )


def _node(node: dict[str, Any], object_info: dict[str, Any], ignored: tuple[str, ...]) -> Iterator[str]:
    info = object_info[node["type"]]
    values = node.get("widgets_values") or []
    names = widget_names(info, values)
    if len(values) > len(names):  # fewer are an older file's: what it lacks takes its default
        yield f"{len(values)} values for the widgets {names}"
    here = dict(zip(names, values, strict=False))
    linked = {i["name"] for i in node["inputs"] if i["link"] is not None}
    known = {name for name, _, _ in specifications(info)}
    for i in node["inputs"]:
        if i["name"].split(".")[0] not in known and i.get("widget") is None:
            yield f"no input {i['name']}"
    for name, type_, options in specifications(info):
        if name in info["input"].get("required", {}) and name not in {*here, *linked}:
            yield f"nothing for {name}"
        to_choose = options.get("image_upload") and here.get(name) == ""  # an image that the user is still to choose
        if name in here and name not in ignored and not to_choose:
            yield from (f"{name}: {here[name]!r} is not {what}" for what in _misfit(here[name], type_, options))
    outputs = [output["type"] for output in node["outputs"]]
    if outputs != list(info["output"])[: len(outputs)]:
        yield f"outputs {outputs}"


def _misfit(value: Any, type_: Any, options: dict[str, Any]) -> Iterator[str]:
    choices = type_ if isinstance(type_, list) else options.get("options")
    if type_ == DYNAMIC:
        choices = [option["key"] for option in choices]
    if isinstance(type_, list) or type_ in ("COMBO", DYNAMIC):
        if value not in choices:
            yield f"one of {choices}"
    elif type_ in ("INT", "FLOAT"):
        numbers = int if type_ == "INT" else (int, float)
        if not isinstance(value, numbers) or not options.get("min", value) <= value <= options.get("max", value):
            yield f"a number from {options.get('min')} to {options.get('max')}"
    elif not isinstance(value, {"STRING": str, "BOOLEAN": bool}[type_]):
        yield f"a {type_}"
