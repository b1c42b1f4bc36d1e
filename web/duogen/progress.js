// How far a run is, in words. In: a `duogen_progress` event (nodes/host/display.py). Out: one line; "" where the words
// that come with the event say it all.

import { strings } from "./strings.js";

const ENOUGH = 3; // seconds; a shorter wait is over before it is read
const known = (...numbers) => numbers.every((number) => Number.isSafeInteger(number) && number > 0);

export function progressLine({ phase, image, of, step, steps, seconds, try: tried, tries, part, parts, images }) {
  const words = strings.progress;
  if (phase === "planning") return known(part) ? words.planning({ part }) : "";
  if (phase === "planned") return words.planned({ parts, images });
  if (!["drawing", "reviewing", "reviewed"].includes(phase)) return "";
  const pieces = [words.anImage];
  if (known(image)) pieces[0] = known(of) ? words.imageOf({ image, of }) : words.image({ image });
  if (known(step, steps)) pieces.push(words.step({ step, steps }));
  if (known(tried, tries)) pieces.push(words.try({ try: tried, tries }));
  if (phase === "reviewing") pieces.push(words.reviewing);
  if (known(seconds) && seconds >= ENOUGH) {
    pieces.push(seconds < 100 ? words.seconds({ seconds }) : words.minutes({ minutes: Math.round(seconds / 60) }));
  }
  return pieces.join(words.separator);
}
