// Gives DuoGen's nodes a viewer for the answer, and opens documents that are dropped. Touches no node of anybody else.
// In: ComfyUI's front end, canvas renderer or Nodes 2.0. Out: a DOM widget "answer", never saved with the workflow.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { AnswerActions } from "./actions.js";
import { downloadRow } from "./downloads.js";
import { listenForDrops } from "./drop.js";
import { followLanguage, labelOptions } from "./language.js";
import { documentOf, isDownstream, listen, nodesOnPath, run, withHolders } from "./live.js";
import { EDIT_PLAN, addPlanButton, keepPlan } from "./plan.js";
import { SETTINGS } from "./settings.js";
import { spoken, strings } from "./strings.js";
import { AnswerViewer } from "./viewer.js";

const OURS = "DuoGen";
const PREVIEW = "DuoGenPreview";
const SAVE = "DuoGenSaveDocument";
const WHOLE = ["DuoGenInterleave", "DuoGenLoopClose"]; // what they show is the answer that Save gets
const REVIEW = "DuoGenReviewImage"; // its images are its tries, which only ComfyUI's own preview shows
const NATIVE_PREVIEW = "$$canvas-image-preview";
const PREVIEW_SIZE = [460, 520];
const ROW_HEIGHT = 34;
const MIN_HEIGHT = 160;
const JOBS = 8; // finished jobs among which a reloaded page looks for its own
const viewers = new Map();

const root = () => app.rootGraph ?? app.graph;

function pictureUrl({ filename, subfolder = "", folder = "temp" }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type: folder })}`);
}

function fetchDownload({ kind, file, source }) {
  const query = file && { filename: file.filename, subfolder: file.subfolder ?? "", type: file.folder ?? "output" };
  return api.fetchApi(`${file ? "/view" : "/duogen/document"}?${new URLSearchParams(query ?? { source, kind, language: spoken.locale })}`);
}

// On the canvas renderer the viewer lies over the canvas, which then sees no wheel; Nodes 2.0 passes it on itself.
function canvasWheel(event) {
  if (event.target.closest("[data-node-id]")) return;
  event.preventDefault();
  app.canvas.processMouseWheel(event);
}

// As wide as its node. The panel of a selected node's parameters draws the widget there too, and writes the panel's width
// into it, which the canvas renderer would give the widget in the node.
function keepWidth(widget) {
  Object.defineProperty(widget, "width", { get: () => undefined, set() {}, configurable: true });
}

function viewerOf(node) {
  if (viewers.has(node)) return viewers.get(node);
  const actions = new AnswerActions({ app, api, LiteGraph: window.LiteGraph, node, strings });
  const viewer = new AnswerViewer({ strings, pictureUrl, fetchDownload, canvasWheel, actions });
  const widget = node.addDOMWidget("answer", "duogen_answer", viewer.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => MIN_HEIGHT,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false;
  keepWidth(widget);
  viewers.set(node, viewer);
  const removed = node.onRemoved;
  node.onRemoved = function (...args) {
    viewers.delete(node);
    viewer.remove();
    return removed?.apply(this, args);
  };
  return viewer;
}

// The images of an answer are in its viewer. Below the widgets of a node that has one, the front end draws at most what is
// being sampled, and not even that where a viewer shows it.
function hideOutputImages(node) {
  node.hideOutputImages = true; // Nodes 2.0
  const draw = node.onDrawBackground; // the canvas
  node.onDrawBackground = function (...args) {
    const locator = this.graph === root() ? String(this.id) : `${this.graph?.id}:${this.id}`;
    const sampling = run.active && !viewers.has(this) && app.nodePreviewImages?.[locator]?.length;
    if (sampling || !documentOf(app.nodeOutputs?.[locator])) return draw?.apply(this, args);
    if (this.imgs) this.imgs = undefined;
    const native = this.widgets?.find((widget) => widget.name === NATIVE_PREVIEW);
    if (native) this.removeWidget(native);
  };
}

// The downloads of an answer that another node shows.
const rows = new WeakMap();
function showDownloads(node, doc) {
  if (!rows.has(node)) {
    const element = document.createElement("div");
    element.className = "duogen-files";
    const height = () => ROW_HEIGHT;
    const options = { serialize: false, hideOnZoom: false, getMinHeight: height, getMaxHeight: height };
    const widget = node.addDOMWidget("downloads", "duogen_downloads", element, options);
    widget.serialize = false;
    keepWidth(widget);
    rows.set(node, element);
  }
  const status = document.createElement("span");
  status.className = "duogen-status";
  status.setAttribute("role", "status");
  const say = (words) => (status.textContent = status.title = words);
  rows.get(node).replaceChildren(downloadRow(doc, { strings, fetchDownload, say }), status);
}

// An answer is shown once. Where a node is there to show it, those that make it and the one that saves it need not; one
// inside a subgraph that they are not in does not count, because nobody sees it from there.
function isShownElsewhere(node) {
  const made = withHolders(node);
  const others = [...viewers.keys()].filter((other) => other !== node && made.some(({ graph }) => graph === other.graph));
  if (node.comfyClass !== SAVE) return others.some((other) => isDownstream(other, made));
  const shows = (other) => WHOLE.includes(other.comfyClass) && made.some((each) => isDownstream(each, [other]));
  return others.some((other) => other.comfyClass === PREVIEW || shows(other));
}

function showOutput(node, output) {
  const doc = documentOf(output);
  if (doc && node.comfyClass === SAVE && !viewers.has(node) && isShownElsewhere(node)) showDownloads(node, doc);
  if (!doc || (!viewers.has(node) && isShownElsewhere(node))) return;
  const viewer = viewerOf(node);
  viewer.endWork();
  viewer.show(doc, run.active && doc.running === true);
}

// Outputs that come back. Of a run that goes on, or stopped, what is downstream has none of its own yet.
function showAgain(node, output) {
  showOutput(node, output);
  const doc = documentOf(output);
  if (!doc?.running) return;
  for (const [other, viewer] of viewers) {
    const waits = !viewer.document || viewer.document.running;
    if (waits && other.graph && isDownstream(other, withHolders(node))) viewer.show(doc, run.active);
  }
}

function nodeAt(locator) {
  const [graph, id] = String(locator).includes(":") ? String(locator).split(":") : [null, locator];
  return (graph ? root().subgraphs?.get(graph) : root())?.getNodeById(Number(id));
}

// A page that was reloaded while its workflow ran may have missed the end: the server's history has the answer. Viewers
// that show one are left alone, but for those in `waiting`. Returns how the run ended, in words; "" for well.
async function showLastAnswer(waiting = new Set()) {
  const jobs = await (await api.fetchApi(`/history?max_items=${JOBS}`)).json();
  const ours = (job) => job.prompt?.[3]?.extra_pnginfo?.workflow?.id === root().id;
  const job = Object.values(jobs).reverse().find(ours);
  const shows = ([node, viewer]) => viewer.document && !waiting.has(node);
  const before = new Set([...viewers].filter(shows).map(([node]) => node));
  // In the order in which they came, so that of an answer that grew the last is what stays.
  for (const [id, output] of Object.entries(job?.outputs ?? {})) {
    const node = nodesOnPath(root(), id).at(-1);
    keepPlan(node, output);
    if (node?.comfyClass?.startsWith(OURS) && !before.has(node)) showAgain(node, output);
  }
  const end = { execution_interrupted: strings.interrupted, execution_error: strings.failed };
  const note = job?.status?.messages?.map(([kind]) => end[kind]).find(Boolean);
  for (const [node, viewer] of viewers) {
    if (!note || before.has(node) || !viewer.document?.running) continue;
    viewer.show(viewer.document, true);
    viewer.endLive(note);
  }
  return job ? (note ?? "") : strings.failed;
}

// Nothing is queued any more, and of the end of our run no message came: the connection was gone for a while, or the
// server began anew.
async function endMissedRun() {
  run.active = false;
  const waiting = new Set([...viewers].filter(([, viewer]) => viewer.isLive).map(([node]) => node));
  const note = await showLastAnswer(waiting).catch(() => strings.failed);
  for (const node of waiting) if (!run.active) viewers.get(node)?.endLive(note);
}

// Nodes 2.0 mounts a widget's element once for each node id. An undo makes the nodes anew under their old ids, so the
// viewer of the node before is still in the place of the new one.
function remount() {
  for (const [node, { element }] of viewers) {
    if (element.isConnected) continue;
    document.querySelector(`[data-node-id="${CSS.escape(String(node.id))}"] .duogen-viewer`)?.replaceWith(element);
  }
}

let reloaded = true; // until the first workflow is there, which is the one the page had before

listenForDrops(app);

app.registerExtension({
  name: "DuoGen.Viewer",
  settings: SETTINGS,
  async init() {
    await followLanguage(app, api);
  },
  setup() {
    const sheet = document.createElement("link");
    sheet.rel = "stylesheet";
    sheet.href = new URL("./viewer.css", import.meta.url).href;
    document.head.append(sheet);
    listen(api, viewers, root);
    api.addEventListener("status", ({ detail }) => {
      if (run.active && detail?.exec_info?.queue_remaining === 0) endMissedRun();
    });
    api.addEventListener("executed", ({ detail }) => {
      const id = detail?.display_node ?? detail?.node;
      const viewer = viewers.get(nodesOnPath(root(), id).at(-1));
      if (viewer) viewer.actions.source = id;
    });
  },
  afterConfigureGraph() {
    if (reloaded && root().id) showLastAnswer().catch(() => {});
    reloaded = false;
    for (const wait of [0, 300, 1000]) setTimeout(remount, wait);
  },
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith(OURS)) return;
    labelOptions(node);
    if (node.comfyClass !== REVIEW) hideOutputImages(node);
    const executed = node.onExecuted;
    node.onExecuted = function (output, ...rest) {
      executed?.call(this, output, ...rest);
      keepPlan(node, output);
      showOutput(node, output);
    };
    if (node.comfyClass === EDIT_PLAN) addPlanButton(node, app);
    if (node.comfyClass === PREVIEW) {
      viewerOf(node);
      node.setSize([Math.max(node.size[0], PREVIEW_SIZE[0]), Math.max(node.size[1], PREVIEW_SIZE[1])]);
    }
  },
  // Outputs that come back: another workflow tab, a finished job opened again.
  onNodeOutputsUpdated(outputs) {
    for (const [locator, output] of Object.entries(outputs ?? {})) {
      const node = documentOf(output) && nodeAt(locator);
      if (!node?.comfyClass?.startsWith(OURS)) continue;
      keepPlan(node, output);
      showAgain(node, output);
    }
  },
});
