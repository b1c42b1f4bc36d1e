// One viewer: a toolbar, the answer, and below it what is being written and drawn at this moment.
// In: show(document), live({status, words, preview}), endLive(note). Out: `element`, for a DOM widget of either renderer.
// Nothing here knows ComfyUI, but for `canvasWheel`: what to do with a wheel turn that scrolls nothing here, and
// `actions` (actions.js): what the buttons at each part of the answer do.

import { answerText, element, paragraph, placesOf, renderDocument } from "./content.js";
import { downloadRow } from "./downloads.js";
import { openPicture } from "./dialog.js";
import { describe, editor, tool, toolRow } from "./tools.js";

const COPIED_MS = 1500;
const REMOVED_MS = 3000;
const OWN_KEYS = ["ArrowUp", "ArrowDown", "PageUp", "PageDown", "Home", "End", " ", "Enter"];

export class AnswerViewer {
  constructor({ strings, pictureUrl, fetchDownload, canvasWheel, actions }) {
    this.strings = strings;
    this.actions = actions;
    this.pictureUrl = pictureUrl;
    this.fetchDownload = fetchDownload;
    this.document = null;

    this.element = element("div", "duogen-viewer");
    this.status = element("span", "duogen-status");
    this.status.setAttribute("role", "status");
    this.copyButton = element("button", "duogen-button", strings.copy);
    this.copyButton.type = "button";
    this.copyButton.addEventListener("click", () => this.copy());
    this.downloads = element("div", "duogen-downloads");
    const bar = element("div", "duogen-bar");
    this.drawButton = tool("draw", strings.draw, strings.drawLong, () => this.act(() => actions.draw()), "duogen-button");
    bar.append(this.status, this.downloads, this.drawButton, this.copyButton);

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
    // The graph may have changed since: what can be done is looked up when somebody comes.
    this.element.addEventListener("pointerenter", () => this.refresh());
    this.element.addEventListener("focusin", ({ relatedTarget }) => this.element.contains(relatedTarget) || this.refresh());
    this.show(null);
  }

  // `running`: more is coming, this is the answer so far.
  show(doc, running = false) {
    if (this.editing) return void (this.deferred = [doc, running]); // what is being typed is not taken away
    const at = this.focusedTool() ?? this.lostFocus;
    [this.document, this.running, this.lostFocus] = [doc, running, null];
    const open = (index) => openPicture(this.pictures, index, this.strings);
    const tools = (place, picture) => this.toolsOf(place, picture);
    const { nodes, pictures } = renderDocument(doc, { strings: this.strings, pictureUrl: this.pictureUrl, open, tools });
    this.pictures = pictures;
    this.answer.replaceChildren(...(nodes.length ? nodes : [element("p", "duogen-note", this.strings.empty)]));
    this.copyButton.disabled = !answerText(doc);
    const say = (words) => this.say(words);
    const downloads = downloadRow(running ? null : doc, { strings: this.strings, fetchDownload: this.fetchDownload, say });
    this.downloads.replaceWith(downloads);
    this.downloads = downloads;
    this.drawButton.hidden = running || !this.actions || !placesOf(doc).some((place) => place.kind === "pending");
    if (at) this.answer.querySelector(at)?.focus();
    if (!running) this.refresh();
    const stop = this.strings.stop;
    const reason = doc?.running ? "" : doc?.generation?.stop_reason; // a part of an answer has no end
    this.tell(this.running ? this.strings.running : Object.hasOwn(stop, reason) ? stop[reason] : "");
    if (this.running && this.follows) this.scrollToEnd();
  }

  // What is being written or drawn: words, how far it is, or a picture while it is sampled. What went before stays above.
  live({ status, words, preview }) {
    if (this.over) this.endWork();
    if (this.work.hidden && !this.running && !this.editing) {
      this.lostFocus = this.focusedTool() ?? this.lostFocus; // back to it when the new answer is there
      if (this.lostFocus) this.scroller.focus({ preventScroll: true });
      this.answer.replaceChildren(); // the answer of the run before
    }
    this.work.hidden = false;
    this.status.setAttribute("aria-live", "off"); // not every step is worth reading out
    if (status !== undefined) this.tell(status || this.strings.running);
    if (words) {
      if (!this.step || !words.startsWith(this.step.words)) this.beginStep();
      this.step.words = this.step.paragraph.textContent = words;
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

  // Whether more is expected.
  get isLive() {
    return this.running || (!this.work.hidden && !this.over);
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
    const where = typeof folder === "string" ? ` ${this.strings.unfinished({ name: folder })}` : "";
    if (note) this.tell(note + where);
  }

  // The line beside the buttons; what does not fit on it is in its tooltip.
  tell(words) {
    this.status.textContent = this.status.title = words;
  }

  // ------------------------------------------------------------ what can be done at each part

  toolsOf(place, picture) {
    if (!this.actions) return null;
    const { strings } = this;
    if (place?.kind === "text") {
      const edits = () => this.edit(place.part);
      return tool("edit", String(place.part), strings.editPart({ number: place.part }), edits, "duogen-number duogen-tool");
    }
    if (place?.kind === "pending") {
      const edits = tool("edit", strings.editShows, strings.editShowsLong({ number: place.image }), () => this.edit(place.part));
      return toolRow(strings.tools({ name: strings.picture({ number: place.image }) }), [edits]);
    }
    const buttons = [];
    if (place) {
      const number = place.image;
      const doing = (name) => () => this.actOn(place.part, (seen, here) => this.actions[name](seen, here));
      const edits = () => this.edit(place.text?.part ?? place.part, place);
      buttons.push(
        tool("keep", strings.keep, strings.keepLong({ number }), doing("keep")),
        tool("reroll", strings.reroll, strings.rerollLong({ number }), doing("reroll")),
        tool("edit", strings.edit, strings.editLong({ number }), edits),
      );
    }
    const refer = () => this.act(() => this.actions.reference(this.actions.look(this.document), picture));
    buttons.push(
      tool("reference", strings.reference, strings.referenceLong({ name: picture.name }), refer),
      tool("open", strings.openShort, strings.openLong({ name: picture.name }), () =>
        openPicture(this.pictures, this.pictures.indexOf(picture), strings),
      ),
    );
    return toolRow(strings.tools({ name: picture.name }), buttons);
  }

  // Looks at the graph, and says on each button what it does now, or why it cannot.
  refresh() {
    const { actions, document: doc, strings } = this;
    if (!actions || this.editing || !placesOf(doc).length) return;
    let seen;
    try {
      seen = actions.look(doc);
    } catch {
      return; // a graph that cannot be read now; the actions say so when they are tried
    }
    for (const place of seen.places) {
      const part = this.answer.querySelector(`[data-part="${place.part}"]`);
      const button = (name) => part?.querySelector(`[data-action="${name}"]`);
      const [keeps, edits] = [button("keep"), button("edit")];
      if (place.kind === "image" && keeps) {
        const long = place.kept ? strings.releaseLong : seen.planned ? strings.keepPlanLong : strings.keepLong;
        describe(button("reroll"), strings.rerollLong({ number: place.image }), place.can.reroll);
        describe(keeps, long({ number: place.image }), place.can.keep);
        keeps.textContent = place.kept ? strings.pinned : strings.keep;
        keeps.setAttribute("aria-pressed", String(Boolean(place.kept)));
        const above = seen.places.find((each) => each === place.text) ?? place;
        describe(edits, strings.editLong({ number: place.image }), above.can.edit);
      } else if (edits && place.kind === "text") {
        describe(edits, (seen.planned ? strings.editPlanPart : strings.editPart)({ number: place.part }), place.can.edit);
      } else if (edits) describe(edits, strings.editShowsLong({ number: place.image }), place.can.edit);
    }
  }

  // `action` returns what to say. It is tried with the graph as it is now.
  async act(action) {
    if (this.acting) return;
    this.acting = true;
    try {
      this.say(await action());
    } catch (error) {
      this.say(this.strings.actionFailed({ why: error?.message ?? String(error) }));
    } finally {
      this.acting = false;
    }
    this.refresh();
  }

  actOn(part, action) {
    return this.act(() => {
      const seen = this.actions.look(this.document);
      return action(seen, seen.places.find((place) => place.part === part));
    });
  }

  say(words) {
    if (!words) return;
    this.status.setAttribute("aria-live", "polite");
    this.tell(words);
  }

  // Opens fields in the place of a part. picture: of a text, the image that it leads to, if it was asked for there.
  edit(part, picture = null) {
    if (this.editing || this.acting) return;
    const { strings } = this;
    let seen;
    try {
      seen = this.actions.look(this.document);
    } catch (error) {
      return this.say(strings.actionFailed({ why: error.message }));
    }
    const place = seen.places.find((each) => each.part === part);
    if (place.can.edit) return this.say(place.can.edit);
    const planned = seen.planned?.at?.has(place) ? seen.planned.parts[seen.planned.at.get(place)] : null;
    const leads = place.kind === "text" ? seen.places.find((each) => each.kind !== "text" && each.text === place) : place;
    const fields = [];
    if (place.kind !== "pending") {
      const value = place.kind === "text" ? place.raw.text.trim() : "";
      fields.push({ name: "text", label: strings.words({ number: place.part }), value });
    }
    const shows = planned ? planned.shows : leads?.raw.caption;
    if (leads && typeof shows === "string" && shows) {
      fields.push({ name: "shows", label: strings.shows({ number: leads.image }), value: shows });
    }
    const opener = this.focusedTool() ?? (picture && `[data-part="${picture.part}"] [data-action="edit"]`);
    const framed = this.answer.querySelector(`[data-part="${place.part}"]`);
    const close = () => {
      this.editing = null;
      form.remove();
      framed.classList.remove("duogen-edited");
      const [later, running] = this.deferred ?? [this.document, this.running];
      this.deferred = null;
      if (later !== this.document || running !== this.running) this.show(later, running);
      (opener && this.answer.querySelector(opener))?.focus();
    };
    const form = editor({
      fields,
      hint: planned ? (seen.editPlan ? strings.editPlanHint : strings.editPlanInsert) : strings.editHint,
      applyLabel: planned && !seen.places.some((each) => each.kind === "image") ? strings.applyPlan : strings.apply,
      cancelLabel: strings.cancel,
      cancel: close,
      apply: async (values) => {
        close();
        if (fields.every(({ name, value }) => values[name].trim() === value.trim())) return;
        await this.actOn(part, async (now, here) => {
          const said = await this.actions.edit(now, here, values);
          if (planned) this.showPlanned(here.part, values);
          return said;
        });
      },
    });
    this.editing = form;
    framed.classList.add("duogen-edited");
    if (place.kind === "image") framed.before(form);
    else framed.append(form);
  }

  // A plan that was changed and is not drawn yet, as it will be drawn.
  showPlanned(part, { text, shows }) {
    const doc = structuredClone(this.document);
    const parts = doc.turns.at(-1).parts;
    const at = part - 1;
    if (parts[at].type === "text" && text !== undefined) parts[at].text = text;
    const next = parts[at].pending ? at : at + 1;
    if (shows !== undefined && parts[next]?.pending) parts[next].shows = shows;
    if (parts.some((each) => each?.pending)) this.show(doc);
  }

  focusedTool() {
    const button = document.activeElement?.closest?.("[data-action]");
    const part = button?.closest("[data-part]");
    return part && this.answer.contains(button)
      ? `[data-part="${part.dataset.part}"] [data-action="${button.dataset.action}"]`
      : null;
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
    this.editing = null;
    if (this.actions) this.actions.closed = true;
    this.endWork();
    setTimeout(() => this.element.remove(), REMOVED_MS); // until then it marks the place for the viewer after it
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
