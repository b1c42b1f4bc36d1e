// The buttons that download an answer: HTML, PDF, Markdown, zip.
// In: a `duogen_document`: `files` that were saved, or the `source` that nodes/steps/downloads.py makes them of.
// Out: an element; a click fetches the file and hands it to the browser. What goes wrong is handed to `say`.

import { element } from "./content.js";

const NAMES = { html: "HTML", pdf: "PDF", markdown: "Markdown", zip: "zip" };
const MADE = ["html", "pdf", "zip"]; // of an answer that is not saved
const SOURCE = /^[0-9a-f]{32}$/;
const KEPT_MS = 60000; // until the browser has surely taken a file

// `fetchDownload({kind, file | source})` -> a Response.
export function downloadRow(doc, { strings, fetchDownload, say }) {
  const row = element("div", "duogen-downloads");
  for (const which of downloadsOf(doc)) {
    const button = element("button", "duogen-button", NAMES[which.kind]);
    button.type = "button";
    button.title = strings.download({ kind: NAMES[which.kind] });
    button.setAttribute("aria-label", button.title);
    button.addEventListener("click", async () => {
      button.disabled = true;
      const failed = await download(fetchDownload(which), which).catch((error) => String(error));
      button.disabled = false;
      if (failed) say(failed);
    });
    row.append(button);
  }
  return row;
}

function downloadsOf(doc) {
  const files = doc?.files !== null && typeof doc?.files === "object" ? doc.files : {};
  const saved = Object.keys(NAMES).filter((kind) => typeof files[kind]?.filename === "string");
  if (saved.length) return saved.map((kind) => ({ kind, file: files[kind] }));
  return SOURCE.test(doc?.source) ? MADE.map((kind) => ({ kind, source: doc.source })) : [];
}

// "" or what went wrong.
async function download(answer, { kind, file }) {
  const response = await answer;
  if (!response.ok) return (await response.text()) || response.statusText;
  const link = element("a");
  link.href = URL.createObjectURL(await response.blob());
  link.download = file?.filename ?? `answer.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), KEPT_MS);
  return "";
}
