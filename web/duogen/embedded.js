// The workflow inside a file that DuoGen Save Document wrote: document.json, .html, .pdf or the .zip of them all.
// In: a File. Out: {workflow, prompt} as it was embedded, {} for a document without one, null for any other file.
// A file may come from anybody: it is searched piece by piece, never held whole and never run, and what it holds goes
// through ComfyUI's own loader.

const FORMAT = "duogen-document";
const KEY = "comfyui"; // in the meta of document.json
const JSON_NAME = "document.json";
const JSON_LIMIT = 16 * 2 ** 20; // bytes of what is read, however large the file is or says it is
const PIECE = 2 ** 20;
const [END_OF_DIRECTORY, DIRECTORY_ENTRY] = [0x06054b50, 0x02014b50];
const READERS = { json: fromJson, html: fromPage, htm: fromPage, pdf: fromPdf, zip: fromZip };

const ending = (file) => /\.(\w+)$/.exec(file.name)?.[1].toLowerCase();

// Whether this may be a document of ours, by its name alone. Of JSON files only those that are named as we name them:
// all others are workflows, which are none of our business.
export function mayHoldDocument(file) {
  return ending(file) === "json" ? /^document\b/i.test(file.name) : Object.hasOwn(READERS, ending(file) ?? "");
}

export async function embeddedWorkflow(file) {
  try {
    return await READERS[ending(file)](file);
  } catch {
    return null; // damaged, or of another make
  }
}

async function fromJson(file) {
  return file.size > JSON_LIMIT ? null : fromDocument(JSON.parse(await file.text()));
}

function fromDocument(value) {
  return value?.format === FORMAT ? (value.meta?.[KEY] ?? {}) : null;
}

// The workflow stands in the head of our page, in front of its style.
async function fromPage(file) {
  const text = await file.slice(0, 2 * JSON_LIMIT).text();
  const end = text.indexOf("<style>");
  if (end < 0) return null;
  const page = new DOMParser().parseFromString(text.slice(0, end), "text/html");
  if (page.querySelector('meta[name="generator"]')?.content !== "DuoGen") return null;
  return JSON.parse(page.querySelector('meta[name="duogen-data"]')?.content ?? "{}");
}

async function fromPdf(file) {
  const mark = "<duogen:data>";
  const start = await find(file, mark);
  if (start < 0) return (await find(file, "/Creator (DuoGen)")) < 0 ? null : {};
  const found = /^[^<]*(?=<\/duogen:data>)/.exec(await latin1(file, start + mark.length, 2 * JSON_LIMIT));
  return found && JSON.parse(atob(found[0]));
}

async function latin1(file, start, length) {
  return new TextDecoder("latin1").decode(await file.slice(start, start + length).arrayBuffer());
}

// Where these words stand first; -1: nowhere.
async function find(file, words) {
  for (let start = 0; start < file.size; start += PIECE) {
    const found = (await latin1(file, start, PIECE + words.length - 1)).indexOf(words);
    if (found >= 0) return start + found;
  }
  return -1;
}

async function view(file, start, length) {
  return new DataView(await file.slice(start, start + length).arrayBuffer());
}

async function fromZip(file) {
  const tail = await view(file, Math.max(0, file.size - 22 - 0xffff), 22 + 0xffff); // a comment of 64 KiB at most
  let at = tail.byteLength - 22;
  while (at >= 0 && tail.getUint32(at, true) !== END_OF_DIRECTORY) at -= 1;
  if (at < 0) return null;
  const [size, start] = [12, 16].map((offset) => tail.getUint32(at + offset, true));
  const directory = await view(file, start, Math.min(size, JSON_LIMIT));
  let entry = 0;
  for (let count = tail.getUint16(at + 10, true); count > 0; count -= 1) {
    if (directory.getUint32(entry, true) !== DIRECTORY_ENTRY) return null;
    const [nameLength, extra, comment] = [28, 30, 32].map((offset) => directory.getUint16(entry + offset, true));
    const name = new TextDecoder().decode(new Uint8Array(directory.buffer, entry + 46, nameLength));
    if (name === JSON_NAME || /^[^/]+\/document\.json$/.test(name)) {
      return fromDocument(JSON.parse(await unpack(file, directory, entry)));
    }
    entry += 46 + nameLength + extra + comment;
  }
  return null;
}

// The text of one member. How large it says it is proves nothing: what comes out is counted.
async function unpack(file, directory, entry) {
  const method = directory.getUint16(entry + 10, true);
  const [length, position] = [20, 42].map((offset) => directory.getUint32(entry + offset, true));
  const local = await view(file, position, 30);
  const start = position + 30 + local.getUint16(26, true) + local.getUint16(28, true);
  const packed = file.slice(start, start + length).stream();
  const reader = (method === 8 ? packed.pipeThrough(new DecompressionStream("deflate-raw")) : packed).getReader();
  const pieces = [];
  let size = 0;
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    size += value.length;
    if (size > JSON_LIMIT) {
      await reader.cancel();
      throw new Error("document.json is too large");
    }
    pieces.push(value);
  }
  return new Blob(pieces).text();
}
