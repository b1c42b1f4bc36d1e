// What can be done with an answer in its viewer: reroll, keep, use as reference, edit a text and go on, edit a plan, draw.
//
// Everything is a value in the workflow: seeds and what is given of DuoGen Interleave or the loop (nodes/steps/answer.py),
// the Markdown of DuoGen Edit Plan, a Load Image node. So an action changes widgets of the nodes that make this answer,
// and of no others, puts their seeds back to those it was made with, and queues the workflow; ComfyUI's cache then makes
// only what follows. A document is foreign: of what it says, only safe integers and texts are written, into these fields.
//
// In: ComfyUI's `app` and `api`, the viewer's node. Out: `look(document)`, what is there; the actions take its result.

import { placesOf } from "./content.js";
import {
  EDIT_PLAN, MAKERS, PLANNERS, PLAN_FIRST, READER, chainOf, controlOf, fieldOf, idOf, insertEditPlan, insertLoadImage,
  isLink, promptOf, samplerOf, upstreamOf, write,
} from "./graph.js";
import { nodesOnPath } from "./live.js";
import { planParts, withPlanPart } from "./plan.js";

const MOST_TEXT = 20_000; // as nodes/steps/answer.py has it
const clipped = (text) => text.slice(0, MOST_TEXT).replace(/[\ud800-\udbff]$/, ""); // never half a character
const SEEDS = ["seed", "noise_seed"];
const safe = (seed) => Number.isSafeInteger(seed) && seed >= 0;
const newSeed = () => Math.floor(Math.random() * Number.MAX_SAFE_INTEGER);

export class AnswerActions {
  constructor({ app, api, LiteGraph, node, strings }) {
    Object.assign(this, { app, api, LiteGraph, node, strings });
    this.source = undefined; // the execution id under which the node last ran
    this.closed = false; // the viewer's node is no longer in the graph in front
  }

  get root() {
    return this.app.rootGraph ?? this.app.graph;
  }

  path(id) {
    return nodesOnPath(this.root, id);
  }

  field(id, name) {
    return id === undefined ? null : fieldOf(this.path(id), name);
  }

  // Who makes this answer, and what its fields hold now. places: of the document, each with `can`: {reroll, keep, edit},
  // "" or why not, and `kept`.
  look(doc) {
    const prompt = promptOf(this.root);
    const seen = { doc, prompt, places: placesOf(doc), planned: null, given: {}, seeds: "" };
    const id = idOf(prompt, this.root, this.node, this.source);
    seen.chain = id === undefined ? [] : chainOf(prompt, id, [...MAKERS, "DuoGenPrompt", "DuoGenLoadDocument"]);
    seen.maker = seen.chain.find((each) => MAKERS.includes(prompt[each].class_type));
    const kind = prompt[seen.maker]?.class_type;
    seen.loop = kind === "DuoGenLoopClose" && isLink(prompt[seen.maker].inputs.loop);
    seen.opened = seen.loop ? prompt[seen.maker].inputs.loop[0] : seen.maker;
    const from = prompt[seen.opened]?.inputs.context;
    const above = seen.maker ? (isLink(from) ? chainOf(prompt, from[0], ["DuoGenPrompt", ...MAKERS]) : []) : seen.chain;
    seen.request = [...seen.chain, ...above].find((each) => prompt[each].class_type === "DuoGenPrompt");
    seen.editPlan = above.find((each) => prompt[each].class_type === EDIT_PLAN);
    seen.planner = above.find((each) => PLANNERS.includes(prompt[each].class_type));
    if (seen.editPlan || seen.planner) seen.planned = this.planFor(seen);
    if (seen.maker) {
      seen.seeds = String(this.field(seen.maker, "seeds")?.widget.value ?? "");
      const ids = new Set([seen.opened, seen.maker]);
      for (const each of ids) Object.assign(seen.given, parseGiven(this.field(each, "given")?.widget.value));
    }
    this.decide(seen);
    return seen;
  }

  // {markdown, parts, at}: the plan that was drawn, and which part of it each place of the document is; or why not.
  planFor(seen) {
    const own = String(this.field(seen.editPlan, "markdown")?.widget.value ?? "");
    const markdown = own.trim() ? own : seen.doc?.plan;
    if (typeof markdown !== "string") return { why: this.strings.why.noPlan };
    const parts = planParts(markdown);
    const at = new Map();
    let place = 0;
    for (const [index, part] of parts.entries()) {
      const here = seen.places[place];
      if (!here) break;
      if (part.text) {
        if (here.kind !== "text" || here.raw.text.trim() !== part.text) return { why: this.strings.why.otherPlan };
        at.set(seen.places[place++], index);
      }
      if (part.shows !== null && seen.places[place]) {
        if (seen.places[place].kind === "text") return { why: this.strings.why.otherPlan };
        at.set(seen.places[place++], index);
      }
    }
    return { markdown, parts, at };
  }

  decide(seen) {
    const { why } = this.strings;
    const { prompt, doc } = seen;
    const before = doc?.generation?.images_before;
    seen.before = Number.isSafeInteger(before) && before > 0 ? before : 0;
    if (!seen.maker) this.findStages(seen);
    let going = true;
    for (const place of seen.places) {
      const number = (place.number = place.image - seen.before); // as `seeds` counts
      const can = (place.can = { reroll: "", keep: "", edit: "" });
      if (seen.planned) can.edit = seen.planned.why ?? (seen.planned.at.has(place) ? "" : why.planned);
      if (!seen.maker) {
        if (!seen.planned) can.edit = place.stage?.writer ? "" : seen.stages ? why.noText : why.noMaker;
        can.keep = seen.stages ? why.stages : why.noMaker;
        can.reroll = place.stage?.why ?? why.noMaker;
        continue;
      }
      const holder = seen.loop && number === 1 ? seen.opened : seen.maker;
      if (number < 1) Object.keys(can).forEach((key) => (can[key] = why.earlier));
      else {
        const field = this.field(holder, seen.loop && number === 1 ? "given" : "seeds");
        if (!field) can.reroll = why.linked;
        else if (seen.loop && !Object.values(prompt).some((each) => usesSeed(each, seen.opened))) can.reroll = why.noSeed;
        if (!this.field(seen.opened, "given") || !this.field(seen.maker, "given")) can.keep = why.linked;
        else if (!safe(place.raw.seed) && place.kind === "image") can.keep = why.bigSeed;
        if (!seen.planned && !this.field(holder, "given")) can.edit = why.linked;
        const later = (each) => each.kind === "text" && each.image === place.image && each.part > place.part;
        if (!seen.planned && place.kind === "text" && seen.places.some(later)) can.edit = why.earlier;
      }
      if (place.kind !== "image") continue;
      const entry = seen.given[number];
      const said = place.text?.raw.text ?? "";
      going &&= number < 1 || (entry !== undefined && entry.seed === place.raw.seed && (entry.text ?? said) === said);
      place.kept = going && number >= 1;
    }
  }

  // A graph of single stages: DuoGen Append Image and DuoGen Write Text, the last ones nearest to the viewer.
  findStages(seen) {
    const { prompt, chain } = seen;
    const { why } = this.strings;
    const pictures = seen.places.filter((place) => place.kind === "image");
    const drawn = []; // the fields of the seeds, so that one that draws two images is seen
    const appends = chain.filter((id) => prompt[id].class_type === "DuoGenAppendImage").slice(0, pictures.length);
    seen.stages = appends.length > 0 || chain.some((id) => prompt[id].class_type === "DuoGenWrite");
    for (const [index, id] of [...appends].reverse().entries()) {
      const place = pictures[pictures.length - appends.length + index];
      const from = prompt[id].inputs.image;
      const sampler = isLink(from) ? samplerOf(prompt, from[0]) : null;
      const field = sampler && this.field(sampler.id, sampler.name);
      const shared = field && drawn.some((other) => other.widget === field.widget);
      place.stage = { id, field, why: !sampler ? why.noSeed : !field ? why.linked : shared ? why.sharedSeed : "" };
      if (field) drawn.push(field);
    }
    // The text that leads to an image was written right before it; the closing one, after the last.
    for (const place of seen.places.filter((place) => place.kind === "text")) {
      const picture = pictures.find((each) => each.text === place);
      const start = picture?.stage ? chain.indexOf(picture.stage.id) + 1 : picture ? chain.length : 0;
      const end = chain.findIndex((id, at) => at >= start && prompt[id].class_type === "DuoGenAppendImage");
      const stretch = chain.slice(start, end < 0 ? chain.length : end);
      const writer = stretch.find((id) => prompt[id].class_type === "DuoGenWrite" && this.field(id, "given"));
      place.stage = { ...place.stage, writer };
    }
  }

  // ------------------------------------------------------------ the actions; each returns what to say

  async reroll(seen, place) {
    const seed = newSeed();
    const { number } = place;
    const changes = [];
    if (place.stage) changes.push([place.stage.field, seed]);
    else {
      const entries = structuredClone(seen.given);
      for (const key of Object.keys(entries).filter((key) => Number(key) > number)) release(entries, key);
      if (place.kept) entries[number].seed = seed;
      else if (entries[number]) delete entries[number].seed;
      if (seen.loop && number === 1) entries[1] = { ...entries[1], seed };
      else changes.push([this.field(seen.maker, "seeds"), withSeed(seen.seeds, number, seed)]);
      changes.push(...this.giving(seen, entries));
    }
    await this.runAgain(seen, changes, place);
    return this.strings.rerolled({ number: place.image, seed });
  }

  async keep(seen, place) {
    const entries = structuredClone(seen.given);
    const { number } = place;
    if (place.kept) for (const key of Object.keys(entries).filter((key) => Number(key) >= number)) release(entries, key);
    else {
      for (const each of seen.places.filter((each) => each.kind === "image" && each.number >= 1 && each.number <= number)) {
        const entry = (entries[each.number] = { ...entries[each.number], seed: each.raw.seed });
        if (!this.textIsSure(seen)) Object.assign(entry, textOf(each));
      }
    }
    this.change(this.giving(seen, entries));
    return place.kept ? this.strings.released({ number: place.image }) : this.strings.pinnedTo({ count: place.image });
  }

  // Whether the texts stay by themselves: a plan says them, or the likeliest word is always taken. In the loop a given
  // text would draw an image once more, to the same pixels; DuoGen Interleave finds it in its cache.
  textIsSure(seen) {
    if (seen.planned) return true;
    const opened = seen.prompt[seen.opened];
    return seen.loop && opened.class_type !== READER && opened.inputs.temperature === 0;
  }

  // `shows`: of an image whose painter reads a caption, or a plan's description.
  async edit(seen, place, { text, shows }) {
    if (seen.planned?.at?.has(place)) return this.editPlan(seen, place, { text, shows });
    const raw = place.kind === "text" ? place.raw.text : ""; // an image may stand without a text
    const words = `${/^\s*/.exec(raw)[0]}${clipped(text.trim())}${raw.trim() ? /\s*$/.exec(raw)[0] : ""}`;
    const picture = place.kind === "text" ? seen.places.find((each) => each.kind !== "text" && each.text === place) : place;
    const caption = shows ?? picture?.raw.caption;
    const said = { text: words, edited: true };
    if (typeof caption === "string" && caption) said.caption = clipped(caption);
    if (!picture && seen.doc.generation?.stop_reason !== "max_images") said.end = true;
    if (place.stage?.writer) {
      const field = this.field(place.stage.writer, "given");
      await this.runAgain(seen, [[field, JSON.stringify({ 1: said })]], place);
      return this.strings.edited({ number: place.part });
    }
    const entries = structuredClone(seen.given);
    const number = place.number;
    for (const key of Object.keys(entries)) if (Number(key) > number) delete entries[key]; // made anew
    entries[number] = { ...(entries[number]?.seed === undefined ? {} : { seed: entries[number].seed }), ...said };
    await this.runAgain(seen, this.giving(seen, entries), place);
    return this.strings.edited({ number: place.part });
  }

  async editPlan(seen, place, { text, shows }) {
    const { markdown, at } = seen.planned;
    const changed = withPlanPart(markdown, at.get(place), { text: text && clipped(text), shows: shows && clipped(shows) });
    const field = this.field(seen.editPlan, "markdown");
    const drawn = seen.places.some((each) => each.kind === "image");
    const change = () => {
      if (field) write(field, changed, this.app.canvas);
      else insertEditPlan(this.LiteGraph, this.path(seen.planner).at(-1), changed, this.app.canvas);
    };
    if (!drawn) {
      this.change([], change);
      return this.strings.planEdited({ number: place.part });
    }
    await this.runAgain(seen, [], place, change);
    return this.strings.edited({ number: place.part });
  }

  async reference(seen, picture) {
    const file = await fetch(picture.url);
    if (!file.ok) throw new Error(this.strings.why.gone);
    const body = new FormData();
    body.append("image", await file.blob(), `image_${picture.number}.png`);
    body.append("subfolder", "duogen");
    const answer = await this.api.fetchApi("/upload/image", { method: "POST", body });
    if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
    const { name, subfolder } = await answer.json();
    const request = seen.request && this.path(seen.request).at(-1);
    let put = null;
    this.change([], () => {
      put = insertLoadImage(this.LiteGraph, subfolder ? `${subfolder}/${name}` : name, request, this.node, this.app.canvas);
    });
    if (put.made.graph === this.app.canvas.graph) {
      this.app.canvas.deselectAll?.();
      this.app.canvas.select?.(put.made);
    }
    return put.connected ? this.strings.referenced({ name: picture.name }) : this.strings.referenceReady({ name: picture.name });
  }

  async draw() {
    if (!(await this.app.queuePrompt(0, 1))) throw new Error(this.strings.notQueued);
    return "";
  }

  // ------------------------------------------------------------ how they change the graph and run it

  // What is given, back into the fields: in a loop the first text and image belong to the node that opens it; so do all
  // texts where it writes the whole answer at once.
  giving(seen, entries) {
    if (!seen.loop) return this.changed([[seen.maker, entries]]);
    const { 1: first, ...later } = entries;
    const whole = seen.prompt[seen.opened].inputs.mode === PLAN_FIRST;
    const texts = Object.entries(later).filter(([, entry]) => "text" in entry);
    const opened = { ...(first ? { 1: first } : {}), ...(whole ? Object.fromEntries(texts) : {}) };
    return this.changed([[seen.opened, opened], [seen.maker, later]]);
  }

  changed(pairs) {
    return pairs.flatMap(([id, entries]) => {
      const field = this.field(id, "given");
      const text = Object.keys(entries).length ? JSON.stringify(entries) : "";
      return !field || (field.widget.value ?? "") === text ? [] : [[field, text]];
    });
  }

  // One step of the graph's undo. While an action waited for the server, another workflow may have come to the front, or
  // an undo may have made all nodes anew.
  change(changes, more = () => {}) {
    if (this.closed) throw new Error(this.strings.why.closed);
    const { canvas } = this.app;
    canvas.emitBeforeChange?.();
    try {
      for (const [field, value] of changes) write(field, value, canvas);
      more();
    } finally {
      canvas.emitAfterChange?.();
    }
    this.root.setDirtyCanvas?.(true, true);
  }

  async runAgain(seen, changes, place, more) {
    const target = place.stage ? seen.chain[0] : (seen.maker ?? seen.chain[0]);
    const back = await this.seedsBack(seen, target, changes.map(([field]) => field.widget));
    this.change([...back, ...changes], more);
    const held = this.holdSeeds(seen, target);
    try {
      if (!(await this.app.queuePrompt(0, 1))) throw new Error(this.strings.notQueued);
    } finally {
      held.forEach(([control, value]) => (control.value = value));
    }
  }

  // The seeds that the shown answer was made with: a control that is not "fixed" has changed them after its run.
  async seedsBack(seen, target, except) {
    const made = await this.inputsOf(seen.doc.prompt);
    const back = new Map();
    for (const id of upstreamOf(seen.prompt, target)) {
      for (const [name, now] of Object.entries(seen.prompt[id].inputs)) {
        const then = made?.[id]?.inputs?.[name];
        if (typeof now !== "number" || !safe(then) || then === now) continue;
        const field = this.field(id, name);
        const inner = this.path(id).at(-1)?.widgets?.find((widget) => widget.name === name);
        if (field && (controlOf(field.widget) || controlOf(inner))) back.set(field.widget, [field, then]);
      }
    }
    const base = seen.doc.generation?.seed;
    if (!made && safe(base) && seen.maker) {
      const field = this.field(seen.opened, "seed");
      if (field) back.set(field.widget, [field, base]);
    }
    except.forEach((widget) => back.delete(widget));
    return [...back.values()];
  }

  // The graph that a run was made of, from the server's history or its queue; null where it knows it no longer.
  async inputsOf(id) {
    if (typeof id !== "string" || !/^[\w-]{1,64}$/.test(id)) return null;
    try {
      const kept = (await (await this.api.fetchApi(`/history/${encodeURIComponent(id)}`)).json())[id];
      if (kept) return kept.prompt[2];
      const { queue_running: running } = await (await this.api.fetchApi("/queue")).json();
      return running.find((entry) => entry[1] === id)?.[2] ?? null;
    } catch {
      return null;
    }
  }

  // With ComfyUI's setting "change values before a run", the seeds that were put back must stay for this one.
  holdSeeds(seen, target) {
    if (this.app.extensionManager?.setting?.get("Comfy.WidgetControlMode") !== "before") return [];
    const held = [];
    for (const id of upstreamOf(seen.prompt, target)) {
      for (const name of SEEDS.filter((name) => name in seen.prompt[id].inputs)) {
        const inner = this.path(id).at(-1)?.widgets?.find((widget) => widget.name === name);
        for (const control of [controlOf(this.field(id, name)?.widget), controlOf(inner)]) {
          if (control && control.value !== "fixed") held.push([control, control.value]);
        }
      }
    }
    held.forEach(([control]) => (control.value = "fixed"));
    return held;
  }
}

// ------------------------------------------------------------ the small languages of the fields

// "3: 1234, 5: 99" with another seed for one image; the others stay as they are written.
export function withSeed(text, number, seed) {
  const entries = text.split(/[,;\n]/).map((entry) => entry.trim()).filter(Boolean);
  const others = entries.filter((entry) => Number(/^(\d+)\s*[:=]/.exec(entry)?.[1]) !== number);
  const of = (entry) => Number(/^\d+/.exec(entry)?.[0] ?? Infinity);
  return [...others, `${number}: ${seed}`].sort((one, other) => of(one) - of(other)).join(", ");
}

// Of what is given, what the viewer itself writes; nothing where the field holds something else.
function parseGiven(text) {
  try {
    const entries = JSON.parse(text || "{}");
    const right = ([number, entry]) => /^[1-9]\d{0,3}$/.test(number) && entry !== null && typeof entry === "object";
    return Object.fromEntries(Object.entries(entries).filter(right));
  } catch {
    return {};
  }
}

// A kept image is let go: its seed, and its text unless a person wrote it.
function release(entries, key) {
  delete entries[key].seed;
  if (!entries[key].edited) delete entries[key];
}

// The text that leads to an image and, where its painter read one, its caption: what makes it the same again.
function textOf(place) {
  const text = clipped(place.text?.raw.text ?? "");
  const { caption } = place.raw;
  return typeof caption === "string" && caption ? { text, caption: clipped(caption) } : { text };
}

const SEED_OUTPUT = 3; // of DuoGen Loop Open and Any Writer Answer
const usesSeed = ({ inputs }, opened) =>
  Object.values(inputs).some((value) => isLink(value) && value[0] === opened && value[1] === SEED_OUTPUT);
