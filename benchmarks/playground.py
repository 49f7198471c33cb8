"""How smoothly *Descent* plays: frames a second with 200 particles, and what a frame costs, in headless Chromium.

    python benchmarks/playground.py

Chromium draws without a GPU here, on the processor that also runs the page. Each row is one run of some ten seconds;
nothing else should run beside it. A screen shows sixty frames a second: fewer than that are frames that came late.
"""

import argparse
import os
import shutil
import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from batchlab.playground._piece import embedded, script, style

CHROMIUM = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
FLAGS = ["--no-sandbox", "--disable-gpu"]
PLAYED = """async (seconds) => {
  const frames = [], work = [];
  const ask = window.requestAnimationFrame.bind(window);
  window.requestAnimationFrame = (next) => ask((now) => {  // what the page itself does in a frame
    const begun = performance.now();
    next(now);
    work.push(performance.now() - begun);
  });
  document.querySelector(".pg-buttons button").click();
  const begin = performance.now();
  await new Promise((done) => {
    const next = (now) => {
      frames.push(now);
      now - begin < seconds * 1000 ? ask(next) : done();
    };
    ask(next);
  });
  return [frames.slice(1).map((now, i) => now - frames[i]), work, document.querySelector(".pg-count").textContent];
}"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10, help="to play in each run (default: 10)")
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    path = os.environ.get("BATCHLAB_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    body = embedded("descent", {"particles": 200}) + script("descent")
    text = f'<!doctype html><meta charset="utf-8"><style>{style()}</style><main>{body}</main>'
    print(f"{os.cpu_count()} cores, 200 particles; in ms a frame, then the page's own work in it (median, 99 %)")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder, "descent.html")
        file.write_text(text, encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        print(f"Chromium {browser.version}")
        for width in (1280, 390):
            for _ in range(given.runs):
                page = browser.new_page(viewport={"width": width, "height": 900})
                page.goto(file.as_uri())
                between, work, count = page.evaluate(PLAYED, given.seconds)
                rate = 1000 * len(between) / sum(between)
                late = [statistics.quantiles(each, n=100)[98] for each in (between, work)]
                middle = [statistics.median(each) for each in (between, work)]
                print(
                    f"{width:4} px: {rate:5.1f} frames a second; {middle[0]:5.1f} {late[0]:5.1f};"
                    f" {middle[1]:5.2f} {late[1]:5.2f}; {count}"
                )
                page.close()
        browser.close()


if __name__ == "__main__":
    main()
