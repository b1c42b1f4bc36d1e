// A document of ours, dropped on the page, opens the workflow that made it, as a picture of ComfyUI does.
// ComfyUI's front end reads workflows from pictures and from workflow files only. So a single file that may be ours is
// taken before it gets there; when it turns out to be somebody else's, the drop is sent on its way again as it came.

import { embeddedWorkflow, mayHoldDocument } from "./embedded.js";
import { strings } from "./strings.js";

const sentOn = new WeakSet();

// `app` is ComfyUI's. Called before the front end listens itself, so that we come first;
// no capturing: an element that takes drops of its own still gets them.
export function listenForDrops(app) {
  document.addEventListener("drop", (event) => {
    const files = event.dataTransfer?.files;
    if (sentOn.has(event) || event.defaultPrevented || files?.length !== 1 || !mayHoldDocument(files[0])) return;
    if (app.dragOverNode?.onDragDrop) return; // a node below the pointer takes files itself
    event.preventDefault();
    event.stopImmediatePropagation();
    open(app, files[0], event);
  });
}

async function open(app, file, event) {
  const data = await embeddedWorkflow(file);
  if (!data) return sendOn(file, event);
  const graph = data.workflow ?? data.prompt;
  if (!graph) {
    const { noWorkflow: summary, noWorkflowDetail: detail } = strings;
    app.extensionManager.toast.add({ severity: "warn", summary, detail, life: 8000 });
    return;
  }
  const name = file.name.replace(/\.\w+$/, ".json");
  await app.handleFile(new File([JSON.stringify(graph)], name, { type: "application/json" }), "file_drop");
}

function sendOn(file, event) {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(file);
  const { clientX, clientY, screenX, screenY, ctrlKey, shiftKey, altKey, metaKey } = event;
  const place = { clientX, clientY, screenX, screenY, ctrlKey, shiftKey, altKey, metaKey };
  const again = new DragEvent("drop", { bubbles: true, cancelable: true, composed: true, dataTransfer, ...place });
  sentOn.add(again);
  event.target.dispatchEvent(again);
}
