// Messages of a running workflow -> the viewers downstream of the node that sent them.
// In: `api` (progress_text, b_preview_with_metadata, executed, the three ends of a run), and the viewers by node.
// Out: calls of AnswerViewer.live, show and endLive; `run.active` while a workflow runs. Nodes are read, never changed.

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

// Whether the viewer's node comes after any of these nodes, inside its own graph.
export function isDownstream(node, sources) {
  const seen = new Set();
  const waiting = [node];
  while (waiting.length) {
    const at = waiting.pop();
    if (seen.has(at)) continue;
    seen.add(at);
    for (let slot = 0; slot < (at.inputs?.length ?? 0); slot++) {
      const before = at.getInputNode(slot);
      if (!before) continue;
      if (sources.includes(before)) return true;
      waiting.push(before);
    }
  }
  return false;
}

// Whether a workflow runs, as far as this page knows: one that was reloaded meanwhile learns it from the next message.
export const run = { active: false };

// `viewers` is a Map of node -> AnswerViewer; `root()` returns the graph of the workflow in front.
export function listen(api, viewers, root, strings) {
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
  api.addEventListener("progress_text", ({ detail }) => {
    if (typeof detail?.text !== "string") return;
    run.active = true;
    for (const [, viewer] of reached(detail.nodeId)) viewer.live({ text: detail.text });
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
    for (const viewer of viewers.values()) viewer.endLive(note);
  };
  api.addEventListener("execution_success", end());
  api.addEventListener("execution_error", end(strings.failed));
  api.addEventListener("execution_interrupted", end(strings.interrupted));
}
