// A document of the user's own into DuoGen Load Document: chosen as a .zip or a folder, or dropped on the node.
// In: files. Out: they lie in ComfyUI's input folder, the node's list has them, and the first one is chosen. The server
// reads each before it is listed (nodes/host/routes.py); what it refuses is said as plain text.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";
import { spoken, strings } from "./strings.js";

const LOAD = "DuoGenLoadDocument";
const ROUTE = "/duogen/documents";
// Of a folder that DuoGen Save Document wrote, what the document is made of: not the page, the PDF and the Markdown.
const PART = /(^|\/)(document\.json|[^/]+\.(png|jpe?g|webp|gif|bmp|tiff?))$/i;

function say(severity, summary, detail) {
  app.extensionManager?.toast?.add({ severity, summary, detail, life: 10000 });
}

// A .zip is sent alone, the files of a folder under their names inside it.
async function send(entries) {
  const form = new FormData();
  for (const { name, file } of entries) form.append("file", file, name);
  const answer = await api.fetchApi(`${ROUTE}?language=${spoken.locale}`, { method: "POST", body: form });
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.error ?? `${answer.status} ${answer.statusText}`);
  return said.document;
}

async function upload(node, documents) {
  const chosen = [];
  try {
    for (const entries of documents) chosen.push(await send(entries));
  } catch (error) {
    say("error", strings.uploadFailed, error.message);
  }
  if (!chosen.length) return;
  await app.refreshComboInNodes();
  const widget = node.widgets.find(({ name }) => name === "document");
  widget.value = chosen[0];
  widget.callback?.(chosen[0]);
  node.setDirtyCanvas?.(true, true);
}

// Files of one choice or one drop -> documents: every .zip is one, all other files together are one folder.
function documentsOf(entries) {
  const zips = entries.filter(({ name }) => /\.zip$/i.test(name) && !name.includes("/"));
  const rest = entries.filter((each) => !zips.includes(each));
  const parts = rest.filter(({ name }) => PART.test(name));
  return [...zips.map((each) => [each]), ...(rest.length ? [parts.length ? parts : rest.slice(0, 1)] : [])];
}

function choose(node, folder) {
  const input = document.createElement("input");
  input.type = "file";
  input.className = "duogen-upload";
  if (folder) input.webkitdirectory = true;
  else [input.accept, input.multiple] = [".zip", true];
  input.hidden = true;
  document.body.append(input);
  input.addEventListener("cancel", () => input.remove());
  input.addEventListener("change", () => {
    const entries = [...input.files].map((file) => ({ name: file.webkitRelativePath || file.name, file }));
    input.remove();
    upload(node, documentsOf(entries));
  });
  input.click();
}

// Everything below a dropped folder. The entries have to be taken while the event lasts.
async function filesOf(entry, path = "") {
  const name = path + entry.name;
  if (entry.isFile) return [{ name, file: await new Promise((found, failed) => entry.file(found, failed)) }];
  const reader = entry.createReader();
  const inside = [];
  for (;;) {
    const some = await new Promise((found, failed) => reader.readEntries(found, failed)); // a hundred at a time
    if (!some.length) break;
    inside.push(...some);
  }
  return (await Promise.all(inside.map((each) => filesOf(each, `${name}/`)))).flat();
}

function takeDrop(node, event) {
  const items = [...(event.dataTransfer?.items ?? [])].filter(({ kind }) => kind === "file");
  const entries = items.map((item) => item.webkitGetAsEntry?.() ?? null);
  const files = [...(event.dataTransfer?.files ?? [])];
  if (!files.length) return false;
  event.preventDefault();
  (async () => {
    const found = await Promise.all(
      entries.map((entry, index) =>
        entry ? filesOf(entry) : files[index] ? [{ name: files[index].name, file: files[index] }] : [],
      ),
    );
    await upload(node, documentsOf(found.flat()));
  })().catch((error) => say("error", strings.uploadFailed, error.message));
  return true;
}

app.registerExtension({
  name: "DuoGen.Upload",
  nodeCreated(node) {
    if (node.comfyClass !== LOAD) return;
    for (const [label, folder] of [
      ["uploadZip", false],
      ["uploadFolder", true],
    ]) {
      const button = node.addWidget("button", strings[label], null, () => choose(node, folder), { serialize: false });
      button.serialize = false; // a click is nothing to save
    }
    node.onDragOver = (event) => [...(event.dataTransfer?.items ?? [])].some(({ kind }) => kind === "file");
    node.onDragDrop = (event) => takeDrop(node, event);
  },
});
