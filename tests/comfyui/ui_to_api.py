"""A workflow file (UI format, as the front end saves it) -> the graph the server runs (API format).

The front end does this in the browser. In: the workflow, and the server's /object_info, which knows the order of
widgets. Out: {node id: {class_type, inputs}}.
"""

from __future__ import annotations

from typing import Any

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
NOT_RUN = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}


def widget_names(info: dict[str, Any]) -> list[str | None]:
    """The inputs that are widgets, in the order of widgets_values; None is "control after generate" beside a seed."""
    names: list[str | None] = []
    for kind in ("required", "optional"):
        for name in info["input_order"].get(kind, []):
            specification = info["input"][kind][name]
            type_, options = specification[0], specification[1] if len(specification) > 1 else {}
            if isinstance(type_, list) or (type_ in WIDGETS and not options.get("forceInput")):
                names.append(name)
                if options.get("control_after_generate"):
                    names.append(None)
    return names


def convert(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] in NOT_RUN or node["mode"] != 0:
            continue
        names = widget_names(object_info[node["type"]])
        values = node.get("widgets_values") or []
        inputs = {name: value for name, value in zip(names, values, strict=False) if name is not None}
        inputs.update({i["name"]: links[i["link"]] for i in node["inputs"] if i["link"] is not None})
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph
