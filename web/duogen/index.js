// Gives DuoGen's nodes a viewer for the answer, and opens documents that are dropped. Touches no node of anybody else.
// In: ComfyUI's front end, canvas renderer or Nodes 2.0. Out: a DOM widget "answer", never saved with the workflow.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { listenForDrops } from "./drop.js";
import { documentOf, isDownstream, listen, nodesOnPath, run } from "./live.js";
import { stringsFor } from "./strings.js";
import { AnswerViewer } from "./viewer.js";

const OURS = "DuoGen";
const PREVIEW = "DuoGenPreview";
const SAVE = "DuoGenSaveDocument";
const WHOLE = ["DuoGenInterleave", "DuoGenLoopClose"]; // what they show is the answer that Save gets
const PREVIEW_SIZE = [460, 520];
const MIN_HEIGHT = 160;
const JOBS = 8; // finished jobs among which a reloaded page looks for its own
const viewers = new Map();

const strings = () => stringsFor(app.extensionManager?.setting?.get("Comfy.Locale"));
const root = () => app.rootGraph ?? app.graph;

function pictureUrl({ filename, subfolder = "", folder = "temp" }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type: folder })}`);
}

// On the canvas renderer the viewer lies over the canvas, which then sees no wheel; Nodes 2.0 passes it on itself.
function canvasWheel(event) {
  if (event.target.closest("[data-node-id]")) return;
  event.preventDefault();
  app.canvas.processMouseWheel(event);
}

function viewerOf(node) {
  if (viewers.has(node)) return viewers.get(node);
  const viewer = new AnswerViewer({ strings: strings(), pictureUrl, canvasWheel });
  const widget = node.addDOMWidget("answer", "duogen_answer", viewer.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => MIN_HEIGHT,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false;
  viewers.set(node, viewer);
  const removed = node.onRemoved;
  node.onRemoved = function (...args) {
    viewers.delete(node);
    viewer.remove();
    return removed?.apply(this, args);
  };
  return viewer;
}

// An answer is shown once. Where a node is there to show it, those that make it and the one that saves it need not.
function isShownElsewhere(node) {
  const others = [...viewers.keys()].filter((other) => other.graph === node.graph && other !== node);
  if (node.comfyClass !== SAVE) return others.some((other) => isDownstream(other, [node]));
  return others.some(
    (other) => other.comfyClass === PREVIEW || (WHOLE.includes(other.comfyClass) && isDownstream(node, [other])),
  );
}

function showOutput(node, output) {
  const doc = documentOf(output);
  if (!doc || (!viewers.has(node) && isShownElsewhere(node))) return;
  const viewer = viewerOf(node);
  viewer.endWork();
  viewer.show(doc, run.active && doc.running === true);
}

function nodeAt(locator) {
  const [graph, id] = String(locator).includes(":") ? String(locator).split(":") : [null, locator];
  return (graph ? root().subgraphs?.get(graph) : root())?.getNodeById(Number(id));
}

// A page that was reloaded while its workflow ran may have missed the end: the server's history has the answer.
async function showLastAnswer() {
  const jobs = await (await api.fetchApi(`/history?max_items=${JOBS}`)).json();
  const ours = (job) => job.prompt?.[3]?.extra_pnginfo?.workflow?.id === root().id;
  const job = Object.values(jobs).reverse().find(ours);
  const before = new Set([...viewers].filter(([, viewer]) => viewer.document).map(([node]) => node));
  // In the order in which they came, so that of an answer that grew the last is what stays.
  for (const [id, output] of Object.entries(job?.outputs ?? {})) {
    const node = nodesOnPath(root(), id).at(-1);
    if (node?.comfyClass?.startsWith(OURS) && !before.has(node)) showOutput(node, output);
  }
  const end = { execution_interrupted: strings().interrupted, execution_error: strings().failed };
  const note = job?.status?.messages?.map(([kind]) => end[kind]).find(Boolean);
  for (const [node, viewer] of viewers) {
    if (!note || before.has(node) || !viewer.document?.running) continue;
    viewer.show(viewer.document, true);
    viewer.endLive(note);
  }
}

let reloaded = true; // until the first workflow is there, which is the one the page had before

listenForDrops(app, strings);

app.registerExtension({
  name: "DuoGen.Viewer",
  setup() {
    const sheet = document.createElement("link");
    sheet.rel = "stylesheet";
    sheet.href = new URL("./viewer.css", import.meta.url).href;
    document.head.append(sheet);
    listen(api, viewers, root, strings());
  },
  afterConfigureGraph() {
    if (reloaded && root().id) showLastAnswer().catch(() => {});
    reloaded = false;
  },
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith(OURS)) return;
    const executed = node.onExecuted;
    node.onExecuted = function (output, ...rest) {
      executed?.call(this, output, ...rest);
      showOutput(node, output);
    };
    if (node.comfyClass === PREVIEW) {
      viewerOf(node);
      node.setSize([Math.max(node.size[0], PREVIEW_SIZE[0]), Math.max(node.size[1], PREVIEW_SIZE[1])]);
    }
  },
  // Outputs that come back: another workflow tab, a finished job opened again.
  onNodeOutputsUpdated(outputs) {
    for (const [locator, output] of Object.entries(outputs ?? {})) {
      const node = documentOf(output) && nodeAt(locator);
      if (node?.comfyClass?.startsWith(OURS)) showOutput(node, output);
    }
  },
});
