// What a new user meets: the badge in About, a word where Python packages are missing, and new nodes that begin with
// what the settings say. In: /duogen/about, ComfyUI's settings. Out: widgets of nodes that a user adds, and of no others:
// a workflow that is opened, pasted or undone has its own values, which come after these.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { DEFAULT_FOLDER, FOLDER, LANGUAGE } from "./settings.js";
import { spoken, strings } from "./strings.js";

// Without an address of the documentation, the badge opens the help of the node that everything begins with.
const HELP = new URL("../docs/DuoGenInterleave.md", import.meta.url).href;
const ROW = 24; // of a widget on the canvas
const badge = { label: "DuoGen", url: HELP, icon: "pi pi-images" };
const chosen = (id) => String(app.extensionManager?.setting?.get(id) ?? "").trim();

function begin(node, name, value, usual) {
  const widget = node.widgets?.find((each) => each.name === name);
  if (widget && value && widget.value === usual) widget.value = value;
}

// A new node has the height of all its widgets. Nodes 2.0 hides the advanced ones, and grows again when they are shown.
function closeUp(node) {
  if (!globalThis.LiteGraph?.vueNodesMode) return;
  const hidden = node.widgets?.filter(({ advanced }) => advanced).length ?? 0;
  if (hidden) node.setSize([node.size[0], node.size[1] - hidden * ROW]);
}

app.registerExtension({
  name: "DuoGen.FirstRun",
  aboutPageBadges: [badge],
  async setup() {
    const answer = await api.fetchApi(`/duogen/about?language=${spoken.locale}`).catch(() => null);
    if (!answer?.ok) return;
    const { version, url, missing } = await answer.json();
    badge.label = `DuoGen v${version}`;
    if (url) badge.url = url;
    if (missing) {
      app.extensionManager?.toast?.add({ severity: "warn", summary: strings.missingPackages, detail: missing });
    }
  },
  nodeCreated(node) {
    if (node.comfyClass?.startsWith("DuoGen")) closeUp(node);
    if (node.comfyClass === "DuoGenSaveDocument") begin(node, "filename_prefix", chosen(FOLDER), DEFAULT_FOLDER);
    if (node.comfyClass === "DuoGenPrompt" && chosen(LANGUAGE)) begin(node, "system", `Answer in ${chosen(LANGUAGE)}.`, "");
  },
});
