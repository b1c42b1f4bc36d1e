// A document -> DOM. What a model wrote goes into the page as text only: createElement and textContent, never markup.
// In: the `duogen_document` of nodes/steps/outputs.py, which may be old or foreign, so nothing in it is taken for granted.
// Out: elements, the pictures in order, and the places of the last answer: what can be acted on (actions.js).
// Parts of the last answer are numbered as DuoGen Edit Answer counts them, its images as `seeds` does.

export function element(tag, className = "", text = null) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== null) made.textContent = text;
  return made;
}

const list = (value) => (Array.isArray(value) ? value : []);
const isText = (part) => part?.type === "text" && typeof part.text === "string";
const isPicture = (part) => part?.type === "image" && (typeof part.filename === "string" || part.pending === true);
const ALT_LENGTH = 200;
const MOST_TRIES = 30;

// The text of the last answer, for the clipboard.
export function answerText(doc) {
  const turn = list(doc?.turns).at(-1);
  const pieces = list(turn?.parts).filter(isText).map((part) => part.text.trim());
  return pieces.filter(Boolean).join("\n\n");
}

// The parts of the last answer, in order: {kind: "text" | "image" | "pending", part, image, raw, text}. part: its number;
// image: that of the image, or of the one that a text leads to; text: of an image, the place of its text, or null.
export function placesOf(doc) {
  const turn = list(doc?.turns).at(-1);
  if (turn?.role !== "assistant") return [];
  const places = [];
  let [image, text] = [1, null];
  list(turn.parts).forEach((raw, index) => {
    if (!isText(raw) && !isPicture(raw)) return;
    const kind = isText(raw) ? "text" : raw.pending === true ? "pending" : "image";
    const place = { kind, part: index + 1, image, raw, text };
    places.push(place);
    if (kind === "text") text = place;
    else [image, text] = [image + 1, null];
  });
  return places;
}

// {nodes, pictures}: the turns of a document. `pictureUrl(part)` -> URL, `open(index)` is called on a click; `tools(place,
// picture)` -> an element with what can be done at a place of the last answer, or of any other picture; null for none.
export function renderDocument(doc, { strings, pictureUrl, open, tools }) {
  const turns = list(doc?.turns);
  const pictures = [];
  const places = new Map(placesOf(doc).map((place) => [place.raw, place]));
  const nodes = turns.map((turn) => {
    const role = Object.hasOwn(strings.roles, turn?.role) ? turn.role : "user";
    const section = element("section", `duogen-turn duogen-${role}`);
    if (turns.length > 1) section.append(element("h3", "duogen-role", strings.roles[role]));
    let before = "";
    let number = 0; // pictures that are still to be drawn count as well
    for (const part of list(turn?.parts)) {
      const place = turn === turns.at(-1) ? places.get(part) : undefined;
      let shown = null;
      if (isText(part)) {
        before = part.text.trim();
        if (before) shown = [paragraph(before)];
      } else if (isPicture(part)) {
        number += 1;
        if (part.pending === true) {
          const shows = typeof part.shows === "string" ? part.shows.trim() : "";
          const words = shows ? strings.pendingShows({ number, shows }) : strings.pending({ number });
          shown = [element("p", "duogen-note duogen-pending", words)];
        } else {
          const picture = describe(part, number, role, role === "assistant" ? before : "", strings, pictureUrl);
          const index = pictures.push(picture) - 1;
          section.append(framed([figure(picture, strings, () => open(index), tools(place, picture))], place, strings));
          continue;
        }
      }
      const made = place && tools(place);
      if (shown) section.append(framed((isText(part) ? [made, ...shown] : [...shown, made]).filter(Boolean), place, strings));
    }
    return section;
  });
  return { nodes, pictures };
}

// Beside a part of the last answer stands its number.
function framed(nodes, place, strings) {
  if (!place) return nodes[0];
  const made = element("div", "duogen-part");
  made.dataset.part = place.part;
  if (!nodes.some((node) => node.classList.contains("duogen-number"))) {
    const number = element("span", "duogen-number", String(place.part));
    number.title = strings.part({ number: place.part });
    made.append(number);
  }
  made.append(...nodes);
  return made;
}

export function paragraph(text) {
  const made = element("p", "duogen-text", text);
  made.dir = "auto"; // also keeps marks that turn the writing direction inside this paragraph
  return made;
}

function describe(part, number, role, before, strings, pictureUrl) {
  const text = (typeof part.text === "string" && part.text.trim()) || before;
  const about = text.length > ALT_LENGTH ? `${text.slice(0, ALT_LENGTH)}…` : text;
  const side = (value) => (Number.isInteger(value) && value > 0 ? value : null);
  const [width, height] = [side(part.width), side(part.height)];
  const name = role === "assistant" ? strings.picture({ number }) : strings.given({ number });
  const facts = [name];
  if (width && height) facts.push(`${width} × ${height}`);
  if (Number.isSafeInteger(part.seed)) facts.push(strings.seed({ seed: part.seed }));
  const alt = about ? strings.pictureOf({ name, text: about }) : name;
  const url = pictureUrl(part);
  return { number, name, url, alt, facts: facts.join(" · "), width, height, tries: tries(part, pictureUrl) };
}

// What a critic said of each try of an image, in order; the words are a model's.
function tries(part, pictureUrl) {
  return list(part.tries)
    .slice(0, MOST_TRIES)
    .filter((one) => one !== null && typeof one === "object")
    .map((one) => ({
      url: typeof one.filename === "string" ? pictureUrl(one) : null,
      seed: Number.isSafeInteger(one.seed) ? one.seed : null,
      score: Number.isFinite(one.score) ? one.score : null,
      good: one.shows === true && one.same_cast !== false,
      wrong: typeof one.wrong === "string" ? one.wrong.trim().slice(0, ALT_LENGTH) : "",
      kept: one.kept === true,
    }));
}

// A count that opens: each try with its small image, its seed and score, and what was wrong with it.
function triesOf(picture, strings) {
  const made = element("details", "duogen-tries");
  const refused = picture.tries.length - 1;
  const only = picture.tries[0];
  const words = refused ? strings.tries({ count: picture.tries.length }) : only.good ? strings.good : strings.reviewed;
  made.append(element("summary", "", words));
  const rows = element("ol");
  for (const one of picture.tries) {
    const row = element("li");
    if (one.url) {
      const link = element("a");
      [link.href, link.target, link.rel] = [one.url, "_blank", "noopener"];
      const image = element("img");
      [image.src, image.alt, image.loading] = [one.url, strings.refused, "lazy"];
      image.addEventListener("error", () => link.remove()); // no longer on the server
      link.append(image);
      row.append(link);
    }
    const facts = [one.kept ? strings.kept : strings.refused];
    if (one.score !== null) facts.push(one.score.toFixed(2));
    if (one.seed !== null) facts.push(strings.seed({ seed: one.seed }));
    row.append(element("span", "duogen-facts", facts.join(" · ")));
    if (one.wrong) row.append(paragraph(one.wrong));
    rows.append(row);
  }
  made.append(rows);
  return made;
}

function figure(picture, strings, open, tools) {
  const made = element("figure", "duogen-figure");
  const button = element("button", "duogen-picture");
  button.type = "button";
  button.title = strings.open;
  const image = element("img");
  image.alt = picture.alt;
  if (picture.width && picture.height) [image.width, image.height] = [picture.width, picture.height];
  image.decoding = "async";
  image.draggable = false;
  image.src = picture.url;
  image.addEventListener("error", () => {
    made.replaceChildren(element("p", "duogen-note", strings.missing({ number: picture.number })));
  });
  button.append(image);
  button.addEventListener("click", open);
  made.append(button, element("span", "duogen-break"), element("figcaption", "duogen-facts", picture.facts));
  if (tools) made.append(tools);
  if (picture.tries.length) made.append(triesOf(picture, strings));
  return made;
}
