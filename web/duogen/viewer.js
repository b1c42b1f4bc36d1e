// One viewer: a toolbar, the answer, and below it what is being written and drawn at this moment.
// In: show(document), live({text, preview}), endLive(note). Out: `element`, for a DOM widget of either renderer.
// Nothing here knows ComfyUI, but for `canvasWheel`: what to do with a wheel turn that scrolls nothing here.

import { answerText, element, paragraph, renderDocument } from "./content.js";
import { openPicture } from "./dialog.js";

const COPIED_MS = 1500;
const OWN_KEYS = ["ArrowUp", "ArrowDown", "PageUp", "PageDown", "Home", "End", " ", "Enter"];

export class AnswerViewer {
  constructor({ strings, pictureUrl, canvasWheel }) {
    this.strings = strings;
    this.pictureUrl = pictureUrl;
    this.document = null;
    this.previewUrl = null;

    this.element = element("div", "duogen-viewer");
    this.status = element("span", "duogen-status");
    this.status.setAttribute("role", "status");
    this.copyButton = element("button", "duogen-button", strings.copy);
    this.copyButton.type = "button";
    this.copyButton.addEventListener("click", () => this.copy());
    const bar = element("div", "duogen-bar");
    bar.append(this.status, this.copyButton);

    this.scroller = element("div", "duogen-scroller");
    this.scroller.tabIndex = 0;
    this.scroller.setAttribute("role", "region");
    this.scroller.setAttribute("aria-label", strings.answer);
    this.scroller.dataset.captureWheel = "true"; // Nodes 2.0: once focused, the wheel scrolls here
    this.answer = element("div", "duogen-answer");
    this.work = element("div", "duogen-work");
    this.work.hidden = true;
    this.workText = paragraph("");
    this.workPicture = element("img", "duogen-preview");
    this.workPicture.alt = strings.preview;
    this.workPicture.hidden = true;
    this.work.append(this.workText, this.workPicture);
    this.scroller.append(this.answer, this.work);
    this.element.append(bar, this.scroller);

    this.element.addEventListener("wheel", (event) => this.onWheel(event, canvasWheel), { passive: false });
    this.element.addEventListener("keydown", (event) => {
      const copies = (event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "c";
      if (copies || (!event.ctrlKey && !event.metaKey && OWN_KEYS.includes(event.key))) event.stopPropagation();
    });
    this.element.addEventListener("copy", (event) => event.stopPropagation()); // selected words, not the node
    this.show(null);
  }

  // `running`: more is coming, this is the answer so far.
  show(doc, running = false) {
    const atEnd = this.isAtEnd();
    [this.document, this.running] = [doc, running];
    const open = (index) => openPicture(this.pictures, index, this.strings);
    const { nodes, pictures } = renderDocument(doc, { strings: this.strings, pictureUrl: this.pictureUrl, open });
    this.pictures = pictures;
    this.answer.replaceChildren(...(nodes.length ? nodes : [element("p", "duogen-note", this.strings.empty)]));
    this.copyButton.disabled = !answerText(doc);
    const stop = this.strings.stop;
    const reason = doc?.generation?.stop_reason;
    this.status.textContent = Object.hasOwn(stop, reason) ? stop[reason] : "";
    if (this.running) {
      this.status.textContent = this.strings.running;
      if (atEnd) this.scrollToEnd();
    }
  }

  // Text and picture at work; what is left out stays as it was.
  live({ text, preview }) {
    const atEnd = this.isAtEnd();
    if (this.work.hidden && !this.running) this.answer.replaceChildren(); // the answer before this one
    this.work.hidden = false;
    this.status.textContent = this.strings.running;
    if (text !== undefined && text !== this.workText.textContent) this.workText.textContent = text;
    if (preview) {
      this.dropPreview();
      this.previewUrl = URL.createObjectURL(preview);
      this.workPicture.src = this.previewUrl;
      this.workPicture.hidden = false;
    }
    if (atEnd) this.scrollToEnd();
  }

  // What was at work is now part of the document, or is over.
  endWork() {
    this.work.hidden = true;
    this.workText.textContent = "";
    this.workPicture.hidden = true;
    this.dropPreview();
  }

  // The run is over. Without a new document the last one comes back.
  endLive(note = "") {
    const worked = !this.work.hidden || this.running;
    this.endWork();
    if (!worked) return;
    this.show(this.document);
    if (note) this.status.textContent = note;
  }

  async copy() {
    const done = await copyToClipboard(answerText(this.document), this.element);
    this.copyButton.textContent = done ? this.strings.copied : this.strings.copyFailed;
    setTimeout(() => (this.copyButton.textContent = this.strings.copy), COPIED_MS);
  }

  onWheel(event, canvasWheel) {
    const box = this.scroller;
    const room = event.deltaY > 0 ? box.scrollHeight - box.clientHeight - box.scrollTop > 1 : box.scrollTop > 0;
    const zooms = event.ctrlKey || event.metaKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
    if (room && !zooms) event.stopPropagation();
    else canvasWheel(event);
  }

  isAtEnd() {
    const box = this.scroller;
    return box.scrollHeight - box.clientHeight - box.scrollTop < 24;
  }

  scrollToEnd() {
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  dropPreview() {
    if (this.previewUrl) URL.revokeObjectURL(this.previewUrl);
    this.previewUrl = null;
  }

  remove() {
    this.dropPreview();
    this.element.remove();
  }
}

// The clipboard's own interface is there on https and localhost only; a server in the local network has neither.
async function copyToClipboard(text, near) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = element("textarea", "duogen-offscreen");
    area.value = text;
    const focused = document.activeElement;
    near.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    focused?.focus?.();
    return done;
  }
}
