// The workflow inside a file that DuoGen Save Document wrote: document.json, .html, .pdf or the .zip of them all.
// In: a File. Out: {workflow, prompt} as it was embedded, {} for a document without one, null for any other file.
// A file may come from anybody: it is searched, never run, and what it holds goes through ComfyUI's own loader.

const FORMAT = "duogen-document";
const KEY = "comfyui"; // in the meta of document.json
const JSON_NAME = "document.json";
const JSON_LIMIT = 16 * 2 ** 20;
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
  return fromDocument(JSON.parse(await file.text()));
}

function fromDocument(value) {
  return value?.format === FORMAT ? (value.meta?.[KEY] ?? {}) : null;
}

async function fromPage(file) {
  const text = await file.text();
  const page = new DOMParser().parseFromString(text.slice(0, text.indexOf("<style>")), "text/html");
  if (page.querySelector('meta[name="generator"]')?.content !== "DuoGen") return null;
  return JSON.parse(page.querySelector('meta[name="duogen-data"]')?.content ?? "{}");
}

async function fromPdf(file) {
  const text = new TextDecoder("latin1").decode(await file.arrayBuffer());
  const found = /<duogen:data>([A-Za-z0-9+/=]*)<\/duogen:data>/.exec(text);
  if (found) return JSON.parse(atob(found[1]));
  return /\/Creator \(DuoGen\)/.test(text) ? {} : null;
}

async function fromZip(file) {
  const packed = new DataView(await file.arrayBuffer());
  let at = packed.byteLength - 22;
  while (at >= 0 && packed.getUint32(at, true) !== END_OF_DIRECTORY) at -= 1;
  if (at < 0) return null;
  let [count, entry] = [packed.getUint16(at + 10, true), packed.getUint32(at + 16, true)];
  for (; count > 0 && packed.getUint32(entry, true) === DIRECTORY_ENTRY; count -= 1) {
    const [nameLength, extra, comment] = [28, 30, 32].map((offset) => packed.getUint16(entry + offset, true));
    const name = new TextDecoder().decode(new Uint8Array(packed.buffer, entry + 46, nameLength));
    if (name === JSON_NAME || /^[^/]+\/document\.json$/.test(name)) {
      return fromDocument(JSON.parse(await unpack(packed, entry)));
    }
    entry += 46 + nameLength + extra + comment;
  }
  return null;
}

async function unpack(packed, entry) {
  const method = packed.getUint16(entry + 10, true);
  const [length, unpacked] = [20, 24].map((offset) => packed.getUint32(entry + offset, true));
  if (unpacked > JSON_LIMIT) throw new Error("document.json is too large");
  const local = packed.getUint32(entry + 42, true);
  const start = local + 30 + packed.getUint16(local + 26, true) + packed.getUint16(local + 28, true);
  const stream = new Blob([new Uint8Array(packed.buffer, start, length)]).stream();
  return new Response(method === 8 ? stream.pipeThrough(new DecompressionStream("deflate-raw")) : stream).text();
}
