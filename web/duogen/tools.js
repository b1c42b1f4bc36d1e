// The buttons at a place of an answer, and the fields in which its text is edited. Only elements; what they do is told.
// A row of buttons is one stop of the Tab key; arrow keys, Home and End go along it. What cannot be done stays in reach,
// with aria-disabled and the reason as its tooltip.

import { element } from "./content.js";

const ROW_KEYS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

export function tool(action, label, title, act, className = "duogen-tool") {
  const made = element("button", className, label);
  made.type = "button";
  made.dataset.action = action;
  describe(made, title);
  made.addEventListener("click", (event) => {
    event.stopPropagation();
    if (made.getAttribute("aria-disabled") !== "true") act(made);
  });
  return made;
}

export function describe(button, title, why = "") {
  button.title = why ? `${title}\n${why}` : title;
  button.setAttribute("aria-label", why ? `${title}. ${why}` : title);
  if (why) button.setAttribute("aria-disabled", "true");
  else button.removeAttribute("aria-disabled");
}

export function toolRow(label, buttons) {
  const made = element("div", "duogen-tools");
  made.setAttribute("role", "toolbar");
  made.setAttribute("aria-label", label);
  buttons.forEach((button, index) => (button.tabIndex = index ? -1 : 0));
  made.append(...buttons);
  const goTo = (button) => {
    buttons.forEach((each) => (each.tabIndex = each === button ? 0 : -1));
    button.focus();
  };
  made.addEventListener("focusin", ({ target }) => buttons.forEach((each) => (each.tabIndex = each === target ? 0 : -1)));
  made.addEventListener("keydown", (event) => {
    const at = buttons.indexOf(event.target);
    if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const ends = { Home: 0, End: buttons.length - 1 };
    const next = ends[event.key] ?? (at + (ROW_KEYS[event.key] ?? 0) + buttons.length) % buttons.length;
    if (!(event.key in ROW_KEYS) && !(event.key in ends)) return;
    event.preventDefault();
    event.stopPropagation();
    goTo(buttons[next]);
  });
  return made;
}

// fields: [{name, label, value}]. apply(values) and cancel() are called; the keys in it are its own.
export function editor({ fields, hint, applyLabel, cancelLabel, apply, cancel }) {
  const made = element("form", "duogen-editor");
  const about = element("p", "duogen-note", hint);
  about.id = `duogen-hint-${Math.random().toString(36).slice(2)}`;
  const areas = fields.map(({ label, value }) => {
    const area = element("textarea", "duogen-field");
    area.value = value;
    area.rows = Math.min(12, Math.max(2, value.split("\n").length, Math.ceil(value.length / 46)));
    area.dir = "auto";
    area.setAttribute("aria-describedby", about.id);
    const named = element("label", "duogen-label", label);
    named.append(area);
    made.append(named);
    return area;
  });
  const applies = element("button", "duogen-button duogen-main", applyLabel);
  applies.type = "submit";
  const cancels = element("button", "duogen-button", cancelLabel);
  cancels.type = "button";
  cancels.addEventListener("click", cancel);
  const bar = element("div", "duogen-bar");
  bar.append(applies, cancels);
  made.append(about, bar);
  const done = () => apply(Object.fromEntries(fields.map(({ name }, index) => [name, areas[index].value])));
  made.addEventListener("submit", (event) => {
    event.preventDefault();
    done();
  });
  made.addEventListener("keydown", (event) => {
    event.stopPropagation(); // neither the viewer's nor the front end's
    if (event.key === "Escape") cancel();
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) done();
    else return;
    event.preventDefault();
  });
  // A word that is copied is no node; a click sets the cursor and drags no node; a long text scrolls by itself.
  for (const kind of ["copy", "cut", "paste", "pointerdown", "mousedown", "dblclick", "contextmenu", "wheel"]) {
    made.addEventListener(kind, (event) => event.stopPropagation());
  }
  queueMicrotask(() => areas[0].focus());
  return made;
}
