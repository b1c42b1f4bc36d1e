// A plan that is edited: the button of DuoGen Edit Plan fills in the plan that ran last; the viewer changes one part of it.
// In: `duogen_plan` in the node's output, [Markdown], whose form duogen_core/planning/markdown.py describes. It goes
// into a text field's value only, never into markup.

import { strings } from "./strings.js";

export const EDIT_PLAN = "DuoGenEditPlan";
const plans = new WeakMap();

export function keepPlan(node, output) {
  const plan = output?.duogen_plan;
  if (node?.comfyClass === EDIT_PLAN && Array.isArray(plan) && typeof plan[0] === "string") plans.set(node, plan[0]);
}

export function addPlanButton(node, app) {
  const fill = () => {
    const field = node.widgets.find((widget) => widget.name === "markdown");
    const plan = plans.get(node);
    if (plan === undefined) {
      app.extensionManager?.toast?.add({ severity: "info", summary: strings.noPlan, life: 5000 });
      return;
    }
    field.value = plan;
    field.callback?.(plan);
    node.setDirtyCanvas?.(true, true);
  };
  const button = node.addWidget("button", strings.takePlan, null, fill, { serialize: false });
  button.serialize = false; // a click is nothing to save
}

// ------------------------------------------------------------ one part of a plan's Markdown

const LINE = /^-{3,}\s*$/;
const LABEL = /^(image|picture|looks at|size|style|cast)\s*[:：]\s*(.*)$/i;
const ESCAPED = /^\\*(-{3,}\s*$|(image|picture|looks at|size|style|cast)\s*[:：]|#\s)/i;
const MEMBER = /^\s*[-*]\s+((?:\\.|[^:：\\])+?)\s*[:：]\s*(.*)$/;

const kindOf = (line) => LABEL.exec(line)?.[1].toLowerCase() ?? "";

// The parts, each {first, end, text, shows}: lines first to end (not included), and what they say; shows: null without an
// image. Empty blocks are none.
export function planParts(markdown) {
  const lines = markdown.replace(/\r\n?/g, "\n").split("\n");
  const ends = [...lines.keys()].filter((index) => LINE.test(lines[index]));
  const starts = [headEnd(lines.slice(0, ends[0] ?? lines.length)), ...ends.map((end) => end + 1)];
  const parts = [];
  starts.forEach((first, index) => {
    const end = ends[index] ?? lines.length;
    const block = lines.slice(first, end);
    if (block.every((line) => !line.trim())) return;
    const image = block.findIndex((line) => ["image", "picture"].includes(kindOf(line)));
    const text = (image < 0 ? block : block.slice(0, image)).map(unescaped).join("\n").trim();
    let shows = null;
    if (image >= 0) {
      const stop = block.findIndex((line, at) => at > image && (!line.trim() || kindOf(line)));
      const wrapped = block.slice(image + 1, stop < 0 ? block.length : stop).map((line) => line.trim());
      shows = [LABEL.exec(block[image])[2], ...wrapped].join(" ").trim();
    }
    parts.push({ first, end, text, shows });
  });
  return parts;
}

// The Markdown with another text, or another description of its image, in part `index`.
export function withPlanPart(markdown, index, { text, shows }) {
  const lines = markdown.replace(/\r\n?/g, "\n").split("\n");
  const part = planParts(markdown)[index];
  const block = lines.slice(part.first, part.end);
  const image = block.findIndex((line) => ["image", "picture"].includes(kindOf(line)));
  const after = image < 0 ? [] : block.slice(image);
  if (shows !== undefined && after.length) {
    const stop = after.findIndex((line, at) => at > 0 && (!line.trim() || kindOf(line)));
    after.splice(0, stop < 0 ? after.length : stop, `Image: ${shows.split(/\s+/).filter(Boolean).join(" ")}`);
  }
  const words = (text ?? part.text).trim();
  const before = words ? words.split("\n").map((line) => (ESCAPED.test(line) ? `\\${line}` : line.trimEnd())) : [];
  const trimmed = [...before, ...(before.length && after.length ? [""] : []), ...after];
  while (trimmed.length && !trimmed.at(-1).trim()) trimmed.pop();
  const whole = [...lines.slice(0, part.first), "", ...trimmed, "", ...lines.slice(part.end)].join("\n");
  return `${whole.replace(/\n{3,}/g, "\n\n").trim()}\n`;
}

// Title, style and cast stand before the first part, whether or not a line of --- follows them.
function headEnd(lines) {
  let [seen, inCast] = [false, false];
  for (const [index, line] of lines.entries()) {
    const kind = kindOf(line);
    if (line.startsWith("# ") && !seen) seen = true;
    else if (kind === "style" || kind === "cast") [seen, inCast] = [true, kind === "cast"];
    else if (line.trim() && !(inCast && MEMBER.test(line))) return index;
  }
  return lines.length;
}

const unescaped = (line) => (line.startsWith("\\") && ESCAPED.test(line) ? line.slice(1) : line.trimEnd());
