"""How soon a page is there: Lighthouse on every page of the built site, as on a telephone with a slow line.

    make book
    npm install --prefix _build/npm lighthouse@12.8.2
    python benchmarks/site.py --lighthouse _build/npm/node_modules/.bin/lighthouse

The site is served from this machine as GitHub Pages serves it, compressed and with its headers; Lighthouse computes
what a slow line (1.6 Mbit/s, 150 ms) and a processor four times slower would make of that. Each number is the median of
the runs. Lighthouse measures its own processor too, so nothing else should run beside it. The exit status is 1 where a
bar is missed.
"""

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from mimetypes import guess_type
from pathlib import Path

SITE = Path(__file__).parents[1] / "_build" / "html"
CHROMIUM = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
CATEGORIES = {"performance": 0.95, "accessibility": 1.0, "best-practices": 1.0, "seo": 0.95}  # the least
MOST_KB = 500  # transferred before scrolling
TEXT = ("text/", "application/javascript", "application/json", "application/xml", "image/svg+xml")


def served(site):
    """Start a server of the directory ``site`` that answers as GitHub Pages does; return it."""

    class Pages(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            path = site / self.path.split("?")[0].lstrip("/")
            path = path / "index.html" if path.is_dir() else path
            found = path.is_file()
            path = path if found else site / "404.html"
            kind, body = guess_type(path.name)[0] or "application/octet-stream", path.read_bytes()
            self.send_response(200 if found else 404)
            if kind.startswith(TEXT):
                body = gzip.compress(body)
                self.send_header("Content-Encoding", "gzip")
                self.send_header("Vary", "Accept-Encoding")
                kind += "; charset=utf-8"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "max-age=600")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.handle_error = lambda *_: None  # Lighthouse hangs up where it has seen enough
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def program(given, names, what, how):
    """Return the path of a program, given or on PATH, or end with a sentence that says how to get it."""
    path = shutil.which(given) if given else next(filter(None, map(shutil.which, names)), None)
    if path is None:
        sys.exit(f"{given or what} is not to be found: {how}")
    return path


def measured(lighthouse, chromium, address):
    """Return what one run of Lighthouse says of one page: {what: number}, and the audits that cost points."""
    flags = "--headless --no-sandbox --disable-gpu"
    command = [lighthouse, address, "--quiet", "--output=json", f"--chrome-flags={flags}"]
    command += [f"--only-categories={','.join(CATEGORIES)}"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CHROME_PATH": chromium})
    if done.returncode:
        sys.exit(f"Lighthouse failed on {address}:\n{done.stderr[-2000:]}")
    report = json.loads(done.stdout)
    audits, categories = report["audits"], report["categories"]
    faults = [
        reference["id"]
        for name in CATEGORIES
        for reference in categories[name]["auditRefs"]
        if reference["weight"] and (audits[reference["id"]]["score"] or 0) < (0.9 if name == "performance" else 1)
        and audits[reference["id"]]["scoreDisplayMode"] not in ("notApplicable", "manual", "informative")
    ]  # fmt: skip
    return {
        **{name: categories[name]["score"] for name in CATEGORIES},
        "kB": audits["total-byte-weight"]["numericValue"] / 1000,
        "first paint, s": audits["first-contentful-paint"]["numericValue"] / 1000,
        "largest paint, s": audits["largest-contentful-paint"]["numericValue"] / 1000,
        "shift": audits["cumulative-layout-shift"]["numericValue"],
        "blocked, ms": audits["total-blocking-time"]["numericValue"],
    }, faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", nargs="?", type=Path, default=SITE, help="the built site (default: _build/html)")
    parser.add_argument("--lighthouse", help="path of Lighthouse's program (default: `lighthouse` on PATH)")
    parser.add_argument("--runs", type=int, default=5, help="runs a page (default: 5)")
    parser.add_argument("--only", default="", help="only pages whose path has this in it")
    given = parser.parse_args()
    how = "npm install lighthouse@12.8.2, then --lighthouse node_modules/.bin/lighthouse"
    lighthouse = program(given.lighthouse, ["lighthouse"], "Lighthouse", how)
    chromium = program(os.environ.get("BATCHLAB_CHROMIUM"), CHROMIUM, "Chromium", "put it on PATH")
    if not (given.site / "index.html").is_file():
        sys.exit(f"{given.site} holds no site: run `make book`")
    pages = sorted(p.relative_to(given.site).as_posix() for p in given.site.rglob("*.html") if "_static" not in p.parts)
    pages = [page for page in pages if given.only in page]
    server = served(given.site)
    address = f"http://127.0.0.1:{server.server_port}/"
    width, missed = max(map(len, pages)), 0
    for number, page in enumerate(pages):
        runs, faults = zip(*(measured(lighthouse, chromium, address + page) for _ in range(given.runs)), strict=True)
        row = {what: statistics.median(run[what] for run in runs) for what in runs[0]}
        if number == 0:
            print(f"{'page':{width}}", *row, sep="  ")
        low = [name for name, least in CATEGORIES.items() if row[name] < least] + ["kB"] * (row["kB"] > MOST_KB)
        missed += bool(low)
        cells = [f"{value:{len(what)}.{0 if what in ('kB', 'blocked, ms') else 2}f}" for what, value in row.items()]
        says = f"  missed: {', '.join(low)} ({', '.join(sorted(set(sum(faults, []))))})" if low else ""
        print(f"{page:{width}}", *cells, sep="  ", end=f"{says}\n", flush=True)
    server.shutdown()
    total = sum(path.stat().st_size for path in given.site.rglob("*") if path.is_file()) / 1e6
    print(f"whole site: {total:.1f} MB; {missed} of {len(pages)} pages miss a bar")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
