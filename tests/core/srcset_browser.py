"""What a browser takes of a srcset: `python -m tests.core.srcset_browser` writes srcset_choices.json beside this file.

Each attribute is set on an image that is 1,000 pixels wide on a screen of 64 pixels a pixel, so that the browser takes
the candidate of the highest density that its parser accepts.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

CHOICES = Path(__file__).with_name("srcset_choices.json")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PAGE = """<!doctype html><body><script>
const found = [];
for (const text of %s) {
  const image = document.createElement("img");
  image.sizes = "1000px";
  image.srcset = text;
  found.push(image);
}
setTimeout(() => {
  const here = new URL(".", document.baseURI).href;
  const chosen = found.map((image) => image.currentSrc.replace(here, ""));
  document.body.innerHTML = "<pre id=chosen></pre>";
  document.getElementById("chosen").textContent = btoa(JSON.stringify(chosen));
}, 200);
</script>"""


def browser() -> str | None:
    return os.environ.get("CHROMIUM_PATH") or next(filter(None, map(shutil.which, NAMES)), None)


def generated(count: int = 200, seed: int = 13) -> list[str]:
    """Attributes of every kind: right ones, and ones with every part of them wrong now and then."""
    rng = random.Random(seed)

    def address(number: int) -> str:
        kinds = ("{}.jpg", "{}.jpg", "i/{}.png", "w_10,h_20/{}.jpg", ",{}.jpg", "{}.jpg,,", "a({}).jpg", "{}.jpg,b.png")
        return rng.choice(kinds).format(number)

    def descriptor() -> str:
        number = rng.choice((rng.randrange(1, 4000), rng.randrange(1, 40)))
        plain = rng.choice((f"{number}w", f"{rng.randrange(1, 9)}x", f"{rng.randrange(1, 90) / 10}x"))
        odd = "0w -5w +5w 1.5w 1e1x -1x .5x 5.x +2x 0x 300h 0h 1024 x w 2X 9W 100q foo 1024w2x Infinityx NaNx 1e2w 007w"
        odd = [*odd.split(), "f(a, b)", "f(a,"]
        return rng.choice(odd) if rng.random() < 0.25 else plain

    def candidate(number: int) -> str:
        space = rng.choice((" ", " ", "  ", "\n  ", "\t", "\f"))
        several = rng.choices((0, 1, 2, 3), (2, 9, 3, 0.5))[0]
        parts = [address(number), *(descriptor() for _ in range(several))]
        if rng.random() < 0.15:
            parts = [address(number), f"{rng.randrange(1, 4000)}w", f"{rng.randrange(1, 4000)}h"]
        return space.join(parts)

    def attribute() -> str:
        between = rng.choice((", ", ",", " , ", ",\n", ", , ", " "))
        text = between.join(candidate(number) for number in range(rng.randrange(1, 5)))
        return rng.choice(("", "", "", " ", ",", ", ,")) + text + rng.choice(("", "", "", ",", " ", " ,,"))

    return [attribute() for _ in range(count)]


def chosen_by_browser(attributes: list[str], program: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        page.write_text(PAGE % json.dumps(attributes).replace("<", "\\u003c"), "utf-8")
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--force-device-scale-factor=64"]
        command += [f"--user-data-dir={folder}/profile", "--virtual-time-budget=5000", "--dump-dom", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    import base64

    return json.loads(base64.b64decode(re.search(r"<pre id=\"chosen\">([^<]*)</pre>", done.stdout).group(1)))


if __name__ == "__main__":
    attributes = generated()
    table = [list(pair) for pair in zip(attributes, chosen_by_browser(attributes, browser()))]
    CHOICES.write_text(json.dumps(table, indent=0) + "\n", "utf-8")
