// Which nodes make an answer, and where their values are written.
// Links are read from `promptOf`, in which reroutes, subgraphs, bypassed and primitive nodes are resolved, as in the prompt
// that ComfyUI queues: {id: {class_type, inputs}}, where an id such as "5:12" is node 12 inside subgraph node 5.
// A value is written where its widget is: on the node, on a primitive node, or promoted to a subgraph node around it.

import { nodesOnPath } from "./live.js";

export const MAKERS = ["DuoGenInterleave", "DuoGenLoopClose"];
export const READER = "DuoGenReadWriter";
export const PLANNERS = ["DuoGenPlanAnswer", "DuoGenPlanEndpoint", "DuoGenPlanFromText"];
export const EDIT_PLAN = "DuoGenEditPlan";
export const PLAN_FIRST = "plan first";
const SUBGRAPH_INPUT = -10;
const SUBGRAPH_OUTPUT = -20;
const HOLDERS = /^Primitive(String|StringMultiline|Int|Float)$/;

export const isLink = (value) => Array.isArray(value) && value.length === 2 && typeof value[0] === "string";

// ------------------------------------------------------------ what would be queued

// As app.graphToPrompt has it, of what is written in the graph. That one asks every widget for the value to queue, and
// for that a webcam takes its picture, a recording ends, a scene is uploaded: not before somebody runs the workflow.
export function promptOf(root) {
  const prompt = {};
  const enter = (graph, holders) => {
    for (const node of graph._nodes.filter(runs)) {
      const path = [...holders, node];
      if (node.subgraph) enter(node.subgraph, path);
      else if (!node.isVirtualNode) prompt[idOfPath(path)] = { class_type: node.comfyClass, inputs: inputsOf(path) };
    }
  };
  enter(root, []);
  for (const { inputs } of Object.values(prompt)) {
    for (const [name, value] of Object.entries(inputs)) if (isLink(value) && !(value[0] in prompt)) delete inputs[name];
  }
  return prompt;
}

const [NEVER, BYPASSED] = [2, 4]; // LiteGraph's modes of a node
const runs = ({ mode }) => mode !== NEVER && mode !== BYPASSED;
const idOfPath = (path) => path.map(({ id }) => id).join(":");
const plain = (value) => (Array.isArray(value) ? { __value__: value } : value); // so that no list is taken for a link

function inputsOf(path) {
  const node = path.at(-1);
  const inputs = {};
  for (const { name, value, options } of node.widgets ?? []) {
    if (name && options?.serialize !== false) inputs[name] = plain(value);
  }
  node.inputs?.forEach(({ name, type }, slot) => {
    const source = sourceOf(path, slot, type);
    if (source) inputs[name] = "id" in source ? [source.id, source.slot] : plain(source.value);
  });
  return inputs;
}

// What an input is connected to: {id, slot} of an output, or {value} of a widget; null for nothing. type: the input's.
function sourceOf(path, slot, type) {
  const link = linkOf(path.at(-1), slot);
  return link ? originOf(path.slice(0, -1), path.at(-1).graph, link, type) : null;
}

// The same of a link of this graph, which is that of the last of these subgraph nodes.
function originOf(holders, graph, link, type) {
  if (Number(link.origin_id) === SUBGRAPH_INPUT) {
    const input = holders.at(-1)?.inputs?.[link.origin_slot];
    if (!input || input.link != null) return input ? sourceOf(holders, link.origin_slot, type) : null;
    const field = fieldOfSlot(holders, input, link.origin_slot);
    return field && { value: field.widget.value };
  }
  const source = graph.getNodeById(link.origin_id);
  return source ? outputOf([...holders, source], link.origin_slot, type) : null;
}

function outputOf(path, slot, type) {
  const node = path.at(-1);
  if (node.mode === NEVER) return null;
  if (node.mode === BYPASSED) {
    const passed = passedOn(node, slot, type);
    return passed < 0 ? null : sourceOf(path, passed, type);
  }
  if (node.subgraph) {
    const inner = linkToOutput(node.subgraph, slot);
    return inner ? originOf(path, node.subgraph, inner, type) : null;
  }
  if (!node.isVirtualNode) return { id: idOfPath(path), slot };
  if (node.type === "PrimitiveNode") return node.widgets?.[0] ? { value: node.widgets[0].value } : null;
  const other = node.resolveVirtualOutput?.(slot); // of other packs: nodes that stand for another, or for its input
  if (other) return outputOf([...path.slice(0, -1), other.node], other.slot, type);
  const link = node.getInputLink?.(slot);
  return link ? originOf(path.slice(0, -1), node.graph, link, type) : null;
}

// Which input a bypassed node hands on at this output.
function passedOn({ inputs, outputs }, slot, type) {
  if (type === "*" || type === "") return slot < inputs.length ? slot : 0;
  const fits = (input) => [outputs[slot].type, type].every((other) => LiteGraph.isValidConnection(input.type, other));
  if (inputs[slot] && fits(inputs[slot])) return slot;
  const same = inputs.findIndex((input) => input.type === type);
  return same < 0 ? inputs.findIndex(fits) : same;
}

// ------------------------------------------------------------ who makes an answer

// The prompt's id of a node. A subgraph may stand in a graph twice; `known` is the id under which this one last ran.
export function idOf(prompt, root, node, known) {
  const isHere = (id) => nodesOnPath(root, id).length === id.split(":").length && nodesOnPath(root, id).at(-1) === node;
  if (prompt[known] && isHere(known)) return known;
  return Object.keys(prompt).find(isHere);
}

// The nodes from `id` up the conversation, nearest first, up to one that `ends` names.
export function chainOf(prompt, id, ends) {
  const chain = [];
  while (prompt[id] && !chain.includes(id)) {
    chain.push(id);
    if (ends.includes(prompt[id].class_type)) break;
    const { inputs } = prompt[id];
    const link = isLink(inputs.context) ? inputs.context : Object.values(inputs).find(isLink);
    id = link?.[0];
  }
  return chain;
}

// `id` and all that it has, directly or not, an input from.
export function upstreamOf(prompt, id) {
  const [found, waiting] = [new Set(), [id]];
  while (waiting.length) {
    const at = waiting.pop();
    if (found.has(at) || !prompt[at]) continue;
    found.add(at);
    waiting.push(...Object.values(prompt[at].inputs).filter(isLink).map(([source]) => source));
  }
  return found;
}

// The nodes that draw one picture, nearest first, and of them the one that has a seed, with the seed's name.
export function samplerOf(prompt, id) {
  const waiting = [id];
  const seen = new Set();
  while (waiting.length) {
    const at = waiting.shift();
    if (seen.has(at) || !prompt[at]) continue;
    seen.add(at);
    const { inputs, class_type: kind } = prompt[at];
    const name = ["noise_seed", "seed"].find((name) => name in inputs);
    if (name && kind !== "DuoGenAppendImage") return { id: at, name };
    waiting.push(...Object.values(inputs).filter(isLink).map(([source]) => source));
  }
  return null;
}

// ------------------------------------------------------------ where a value is written

// Not node.getInputLink, which means something else on a subgraph node.
const linkOf = (node, slot) => node.graph?.getLink(node.inputs[slot]?.link) ?? null;

// The link to an output of a subgraph, inside it.
function linkToOutput(subgraph, slot) {
  const links = [...(subgraph.links?.values?.() ?? [])];
  return links.find((each) => Number(each.target_id) === SUBGRAPH_OUTPUT && each.target_slot === slot);
}

// {node, widget} that holds the value of an input; null where another node computes it. path: the node and the subgraph
// nodes around it, outermost first, of one execution id.
export function fieldOf(path, name) {
  const node = path.at(-1);
  const slot = node?.inputs?.findIndex((input) => input.name === name) ?? -1;
  const link = slot < 0 ? null : linkOf(node, slot);
  if (link) return sourceField(path, link);
  const widget = node?.widgets?.find((widget) => widget.name === name);
  return widget ? { node, widget } : null;
}

function sourceField(path, link) {
  if (Number(link.origin_id) === SUBGRAPH_INPUT) {
    const outer = path.slice(0, -1);
    const input = outer.at(-1)?.inputs?.[link.origin_slot];
    return input ? fieldOfSlot(outer, input, link.origin_slot) : null;
  }
  const source = path.at(-1).graph.getNodeById(link.origin_id);
  if (!source) return null;
  const beside = [...path.slice(0, -1), source];
  if (source.type === "PrimitiveNode") return source.widgets?.[0] ? { node: source, widget: source.widgets[0] } : null;
  if (source.type === "Reroute") {
    const before = linkOf(source, 0);
    return before ? sourceField(beside, before) : null;
  }
  if (HOLDERS.test(source.comfyClass ?? "")) return fieldOf(beside, "value");
  if (source.subgraph) {
    const inner = linkToOutput(source.subgraph, link.origin_slot);
    const made = inner && source.subgraph.getNodeById(inner.origin_id);
    return made ? sourceField([...beside, made], inner) : null;
  }
  return null;
}

function fieldOfSlot(path, input, slot) {
  const node = path.at(-1);
  const link = linkOf(node, slot);
  if (link) return sourceField(path, link);
  const name = input.widget?.name ?? input.name;
  const widget = node.widgets?.find((widget) => widget.name === name);
  return widget ? { node, widget } : null;
}

// The control that changes a number with every run, where the widget has one.
export const controlOf = (widget) => widget?.linkedWidgets?.find((each) => typeof each.afterQueued === "function");

export function write({ node, widget }, value, canvas) {
  widget.value = value;
  widget.callback?.(value, canvas, node);
  node.setDirtyCanvas?.(true, true);
}

// ------------------------------------------------------------ nodes that are put in

// Puts a new DuoGen Edit Plan behind a planner: whatever had its context or its plan gets that of the new node.
export function insertEditPlan(LiteGraph, planner, markdown, canvas) {
  const { graph } = planner;
  const made = LiteGraph.createNode(EDIT_PLAN);
  made.pos = [planner.pos[0] + planner.size[0] + 40, planner.pos[1]];
  graph.add(made);
  for (const [slot, output] of planner.outputs.entries()) {
    for (const id of [...(output.links ?? [])]) {
      const link = graph.getLink(id);
      if (!link) continue;
      const { target_id: target, target_slot: entry } = link;
      if (Number(target) === SUBGRAPH_OUTPUT) graph.outputNode.slots[entry].connect(made.outputs[slot], made);
      else made.connect(slot, graph.getNodeById(target), entry);
    }
  }
  planner.connect(0, made, made.findInputSlot("context"));
  write({ node: made, widget: made.widgets.find((widget) => widget.name === "markdown") }, markdown, canvas);
  return made;
}

// Puts in a Load Image node with an uploaded image; connected to the first image of a request, if that has none yet.
export function insertLoadImage(LiteGraph, value, request, beside, canvas) {
  const images = request?.inputs?.filter((input) => input.name.startsWith("images")) ?? [];
  const free = images.length && images.every((input) => input.link == null);
  const near = free ? request : beside;
  const made = LiteGraph.createNode("LoadImage");
  made.pos = free
    ? [near.pos[0] - made.size[0] - 60, near.pos[1] + 40]
    : [near.pos[0] + near.size[0] + 40, near.pos[1]];
  near.graph.add(made);
  const widget = made.widgets.find((widget) => widget.name === "image");
  const { values } = widget.options;
  if (Array.isArray(values) && !values.includes(value)) values.push(value);
  write({ node: made, widget }, value, canvas);
  if (free) made.connect(0, request, request.inputs.indexOf(images[0]));
  return { made, connected: Boolean(free) };
}
