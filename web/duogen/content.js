// A document -> DOM. What a model wrote goes into the page as text only: createElement and textContent, never markup.
// In: the `duogen_document` of nodes/steps/unfinished.py, which may be old or foreign, so nothing in it is taken for granted.
// Out: elements, and the pictures in order as {number, url, alt, facts, width, height}.

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

// The text of the last answer, for the clipboard.
export function answerText(doc) {
  const turn = list(doc?.turns).at(-1);
  const pieces = list(turn?.parts).filter(isText).map((part) => part.text.trim());
  return pieces.filter(Boolean).join("\n\n");
}

// {nodes, pictures}: the turns of a document. `pictureUrl(part)` -> URL, `open(index)` is called on a click.
export function renderDocument(doc, { strings, pictureUrl, open }) {
  const turns = list(doc?.turns);
  const pictures = [];
  let number = 0; // pictures that are still to be drawn count as well
  const nodes = turns.map((turn) => {
    const role = Object.hasOwn(strings.roles, turn?.role) ? turn.role : "user";
    const section = element("section", `duogen-turn duogen-${role}`);
    if (turns.length > 1) section.append(element("h3", "duogen-role", strings.roles[role]));
    let before = "";
    for (const part of list(turn?.parts)) {
      if (isText(part)) {
        before = part.text.trim();
        if (before) section.append(paragraph(before));
      } else if (isPicture(part)) {
        number += 1;
        if (part.pending === true) {
          section.append(element("p", "duogen-note duogen-pending", strings.pending(number)));
          continue;
        }
        const picture = describe(part, number, role === "assistant" ? before : "", strings, pictureUrl);
        const index = pictures.push(picture) - 1;
        section.append(figure(picture, strings, () => open(index)));
      }
    }
    return section;
  });
  return { nodes, pictures };
}

export function paragraph(text) {
  const made = element("p", "duogen-text", text);
  made.dir = "auto"; // also keeps marks that turn the writing direction inside this paragraph
  return made;
}

function describe(part, number, before, strings, pictureUrl) {
  const text = (typeof part.text === "string" && part.text.trim()) || before;
  const about = text.length > ALT_LENGTH ? `${text.slice(0, ALT_LENGTH)}…` : text;
  const side = (value) => (Number.isInteger(value) && value > 0 ? value : null);
  const [width, height] = [side(part.width), side(part.height)];
  const facts = [strings.picture(number)];
  if (width && height) facts.push(`${width} × ${height}`);
  if (Number.isSafeInteger(part.seed)) facts.push(strings.seed(part.seed));
  const alt = about ? strings.pictureOf(number, about) : strings.picture(number);
  return { number, url: pictureUrl(part), alt, facts: facts.join(" · "), width, height };
}

function figure(picture, strings, open) {
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
    made.replaceChildren(element("p", "duogen-note", strings.missing(picture.number)));
  });
  button.append(image);
  button.addEventListener("click", open);
  made.append(button, element("figcaption", "duogen-facts", picture.facts));
  return made;
}
