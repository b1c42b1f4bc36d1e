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
    this.follows = true; // as long as the reader has not scrolled back
    this.scroller.addEventListener("scroll", () => (this.follows = this.isAtEnd()));
    this.answer = element("div", "duogen-answer");
    this.work = element("div", "duogen-work");
    this.work.hidden = true;
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
    [this.document, this.running] = [doc, running];
    const open = (index) => openPicture(this.pictures, index, this.strings);
    const { nodes, pictures } = renderDocument(doc, { strings: this.strings, pictureUrl: this.pictureUrl, open });
    this.pictures = pictures;
    this.answer.replaceChildren(...(nodes.length ? nodes : [element("p", "duogen-note", this.strings.empty)]));
    this.copyButton.disabled = !answerText(doc);
    const stop = this.strings.stop;
    const reason = doc?.running ? "" : doc?.generation?.stop_reason; // a part of an answer has no end
    this.status.textContent = Object.hasOwn(stop, reason) ? stop[reason] : "";
    if (this.running) {
      this.status.textContent = this.strings.running;
      if (this.follows) this.scrollToEnd();
    }
  }

  // What is being written or drawn: a progress text, or a picture while it is sampled. What went before stays above it.
  live({ text, preview }) {
    if (this.over) this.endWork();
    if (this.work.hidden && !this.running) this.answer.replaceChildren(); // the answer of the run before
    this.work.hidden = false;
    this.status.setAttribute("aria-live", "off"); // not every step is worth reading out
    if (text !== undefined) {
      const { status, words } = splitProgress(text);
      this.status.textContent = status || this.strings.running;
      const step = this.step;
      if (words && !WHOLE.test(words)) {
        if (!step || !words.startsWith(step.words)) this.beginStep();
        this.step.words = this.step.paragraph.textContent = words;
      }
    }
    if (preview) {
      if (!this.step) this.beginStep();
      const { picture } = this.step;
      URL.revokeObjectURL(picture.src);
      picture.src = URL.createObjectURL(preview);
      picture.hidden = false;
    }
    if (this.follows) this.scrollToEnd();
  }

  beginStep() {
    const step = { words: "", paragraph: paragraph(""), picture: element("img", "duogen-preview") };
    step.picture.alt = this.strings.preview;
    step.picture.hidden = true;
    step.picture.addEventListener("load", () => this.follows && this.scrollToEnd());
    this.work.append(step.paragraph, step.picture);
    this.step = step;
  }

  // What was at work is now part of the document, or is over.
  endWork() {
    for (const picture of this.work.querySelectorAll("img")) URL.revokeObjectURL(picture.src);
    this.work.replaceChildren();
    this.work.hidden = true;
    this.step = null;
    this.over = false;
    this.status.setAttribute("aria-live", "polite");
  }

  // The run is over. One that failed or was cancelled, as `note` says, leaves what it had done; else the document counts.
  endLive(note = "") {
    if (this.over || (this.work.hidden && !this.running)) return;
    this.over = Boolean(note && this.step);
    if (!this.over) {
      this.endWork();
      this.show(this.document);
    }
    this.running = false;
    this.status.setAttribute("aria-live", "polite");
    const folder = this.document?.running && this.document.unfinished;
    const where = typeof folder === "string" ? ` ${this.strings.unfinished(folder)}` : "";
    if (note) this.status.textContent = note + where;
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

  remove() {
    this.endWork();
    this.element.remove();
  }
}

// "Image 2 of at most 5, step 3 of 8", then the paragraph it shows. The last text of a run is the whole answer in
// plain lines, which the document replaces at once.
const STATUS = /^(Image(?: \d+)?(?: of at most \d+)?(?:, step \d+ of \d+)?)(?:\n\n|$)/;
const WHOLE = /\[image \d+\]/;

function splitProgress(text) {
  const [whole, status] = STATUS.exec(text) ?? ["", ""];
  return { status, words: text.slice(whole.length).trim() };
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
