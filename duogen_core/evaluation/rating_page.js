"use strict";
// Shows two answers side by side and keeps which one is better. What models wrote is only ever set as text.
// Questions: every metric of a pair after the other. Kept in the browser under the page's id until it is saved.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const store = `duogen-ratings-${data.page}`;
  const count = data.pairs.length * data.metrics.length;
  let verdicts = {}; // "pair metric" -> verdict
  let number = 0; // of the question

  try {
    const kept = JSON.parse(localStorage.getItem(store) || "{}");
    for (let k = 0; k < count; k++)
      if (["left", "right", "tie"].includes(kept.verdicts?.[k])) verdicts[k] = kept.verdicts[k];
    at("rater").value = typeof kept.rater === "string" ? kept.rater.slice(0, 80) : "";
    number = firstOpen();
  } catch {
    verdicts = {}; // a browser that keeps nothing for pages of the disk: saving as a file still works
  }

  function firstOpen() {
    for (let k = 0; k < count; k++) if (!(k in verdicts)) return k;
    return count - 1;
  }

  function keep() {
    try {
      localStorage.setItem(store, JSON.stringify({ verdicts, rater: at("rater").value }));
    } catch {
      at("said").textContent = "This browser keeps nothing by itself: save the ratings before you close the page.";
    }
  }

  function fill(box, parts) {
    box.replaceChildren();
    for (const part of parts) {
      const shown = document.createElement(part.image ? "img" : "div");
      if (part.image) {
        shown.src = part.image;
        shown.alt = "image";
      } else {
        shown.className = part.speaker ? "speaker" : "text";
        shown.dir = "auto";
        shown.textContent = part.speaker ? part.speaker + ":" : part.text;
      }
      box.append(shown);
    }
    if (!parts.length) box.textContent = "(empty)";
  }

  let shownPair = -1;
  function show() {
    const place = Math.floor(number / data.metrics.length);
    const metric = data.metrics[number % data.metrics.length];
    if (place !== shownPair) {
      for (const side of ["request", "left", "right"]) fill(at(side), data.pairs[place][side]);
      window.scrollTo(0, 0);
      shownPair = place;
    }
    at("question").textContent = metric.question;
    const done = Object.keys(verdicts).length;
    at("place").textContent = `Pair ${place + 1} of ${data.pairs.length}, ${done} of ${count} questions answered`;
    at("progress").max = count;
    at("progress").value = done;
    for (const button of at("verdicts").children)
      button.setAttribute("aria-pressed", String(verdicts[number] === button.dataset.verdict));
    at("back").disabled = number === 0;
    at("next").disabled = number === count - 1;
    if (done === count) at("said").textContent = "All answered. Save the ratings and send the file back.";
  }

  function move(by) {
    number = Math.min(Math.max(number + by, 0), count - 1);
    show();
  }

  function say(verdict) {
    verdicts[number] = verdict;
    at("said").textContent = "";
    keep();
    move(1);
  }

  function save() {
    const rater = at("rater").value.trim();
    const ratings = Object.keys(verdicts).map(Number).sort((a, b) => a - b).map((k) => ({
      pair: Math.floor(k / data.metrics.length) + 1,
      metric: data.metrics[k % data.metrics.length].name,
      verdict: verdicts[k],
    }));
    const head = { format: "duogen-ratings", version: 1, benchmark: data.benchmark, rater, page: data.page };
    const file = new Blob([JSON.stringify({ ...head, ratings }, null, 1) + "\n"], { type: "application/json" });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(file);
    link.download = `ratings-${rater.replace(/[^\p{L}\p{N}_-]+/gu, "-") || "of-mine"}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    at("said").textContent = `${ratings.length} of ${count} ratings saved as ${link.download}.`;
  }

  const keys = {
    ArrowLeft: () => say("left"), ArrowRight: () => say("right"), t: () => say("tie"), // up and down scroll
    1: () => say("left"), 2: () => say("tie"), 3: () => say("right"),
    Backspace: () => move(-1), n: () => move(1), s: save,
  };
  document.addEventListener("keydown", (event) => {
    if (event.target === at("rater") || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
    const act = keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  for (const button of at("verdicts").children) button.addEventListener("click", () => say(button.dataset.verdict));
  at("back").addEventListener("click", () => move(-1));
  at("next").addEventListener("click", () => move(1));
  at("save").addEventListener("click", save);
  at("rater").addEventListener("input", keep);
  show();
})();
