// Messages of a running workflow -> the viewers downstream of the node that sent them.
// In: `api` (duogen_progress, progress_text, b_preview_with_metadata, executed, the three ends of a run), and the viewers
// by node. `duogen_progress` is described in nodes/host/display.py.
// Out: calls of AnswerViewer.live, show and endLive; `run.active` while a workflow runs. Nodes are read, never changed.

import { progressLine } from "./progress.js";
import { strings } from "./strings.js";

const KEY = "duogen_document";

export function documentOf(output) {
  const found = output?.[KEY];
  return Array.isArray(found) && Array.isArray(found[0]?.turns) ? found[0] : null;
}

// "3", "5:12" (node 12 inside subgraph node 5), "3.0.0.7" (made while node 3 expanded) -> nodes, outermost first.
export function nodesOnPath(root, executionId) {
  const path = [];
  let graph = root;
  for (const piece of String(executionId).split(":")) {
    const node = graph?.getNodeById(Number(piece.split(".")[0]));
    if (!node) break;
    path.push(node);
    graph = node.subgraph;
  }
  return path;
}

// Whether a node comes after any of these, also out of the subgraph that it is in.
export function isDownstream(node, sources) {
  const seen = new Set();
  const waiting = [node];
  while (waiting.length) {
    const at = waiting.pop();
    if (seen.has(at)) continue;
    seen.add(at);
    for (let slot = 0; slot < (at.inputs?.length ?? 0); slot++) {
      for (const before of nodesBefore(at, slot)) {
        if (sources.includes(before)) return true;
        waiting.push(before);
      }
    }
  }
  return false;
}

// What an input is connected to. From the edge of a subgraph it goes on at the nodes that stand for the subgraph. Those
// have a getInputLink of their own, which tells of a link inside.
function nodesBefore(node, slot) {
  const link = node.graph && LiteGraph.LGraphNode.prototype.getInputLink.call(node, slot);
  if (!link) return [];
  if (link.origin_id !== node.graph.inputNode?.id) return [node.graph.getNodeById(link.origin_id)].filter(Boolean);
  return standingFor(node.graph).flatMap((holder) => nodesBefore(holder, link.origin_slot));
}

// The nodes that stand for a subgraph, wherever they are.
function standingFor(graph) {
  if (!graph) return [];
  const root = graph.rootGraph ?? graph;
  const graphs = [root, ...(root.subgraphs?.values() ?? [])];
  return graphs.flatMap((each) => each._nodes).filter((node) => node.subgraph && node.subgraph === graph);
}

// A node and the nodes that stand for the subgraphs that it is in.
export function withHolders(node) {
  return [node, ...standingFor(node.graph).flatMap(withHolders)];
}

// Whether a workflow runs, as far as this page knows: one that was reloaded meanwhile learns it from the next message.
export const run = { active: false };

// `viewers` is a Map of node -> AnswerViewer; `root()` returns the graph of the workflow in front.
export function listen(api, viewers, root) {
  // The viewers of the nodes after the one that sent something, and its own.
  const reached = function* (executionId) {
    if (executionId == null || !viewers.size) return;
    const sources = nodesOnPath(root(), executionId);
    if (!sources.length) return;
    for (const [node, viewer] of viewers) {
      if (node.graph && (sources.includes(node) || isDownstream(node, sources))) yield [node, viewer];
    }
  };
  api.addEventListener("execution_start", () => (run.active = true));
  api.addEventListener("duogen_progress", ({ detail }) => {
    run.active = true;
    const said = detail.phase === "reviewing" ? [] : [detail.notice, detail.text];
    const words = detail.phase === "end" ? "" : said.filter((text) => typeof text === "string" && text).join("\n\n");
    for (const [, viewer] of reached(detail.display_node)) viewer.live({ status: progressLine(detail), words });
  });
  // Of other packs' nodes. Ours say the same as data.
  api.addEventListener("progress_text", ({ detail }) => {
    const ours = nodesOnPath(root(), detail?.nodeId).at(-1)?.comfyClass?.startsWith("DuoGen");
    if (typeof detail?.text !== "string" || ours) return;
    run.active = true;
    for (const [, viewer] of reached(detail.nodeId)) viewer.live({ status: "", words: detail.text.trim() });
  });
  api.addEventListener("b_preview_with_metadata", ({ detail }) => {
    run.active = true;
    for (const [, viewer] of reached(detail?.displayNodeId ?? detail?.nodeId)) viewer.live({ preview: detail.blob });
  });
  api.addEventListener("executed", ({ detail }) => {
    const doc = documentOf(detail?.output);
    if (!doc) return;
    const id = detail.display_node ?? detail.node;
    const sources = nodesOnPath(root(), id);
    for (const [node, viewer] of reached(id)) {
      if (sources.includes(node)) continue; // the front end calls its onExecuted
      viewer.endWork();
      viewer.show(doc, true);
    }
  });
  const end = (note) => () => {
    run.active = false;
    for (const viewer of viewers.values()) viewer.endLive(strings[note]);
  };
  api.addEventListener("execution_success", end());
  api.addEventListener("execution_error", end("failed"));
  api.addEventListener("execution_interrupted", end("interrupted"));
}
