"""The one place that says which Chromium tests the pages. As a script: get one if there is none, and print its path.

It is the one named in BATCHLAB_CHROMIUM, or one on PATH, or Playwright's own. Where none of them runs, Playwright's is
fetched if the network allows; failing that, root on a CI machine (CI=true) installs Debian's.
"""

import os
import shutil
import subprocess
import sys

NAMES = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
PLAYWRIGHT = [[sys.executable, "-m", "playwright", "install", "--no-shell", "chromium"]]
DEBIAN = [["apt-get", "update", "-qq"], ["apt-get", "install", "-qq", "-y", "--no-install-recommends", "chromium"]]


def found():
    """Return the path of a Chromium that runs; None where there is none."""
    if named := os.environ.get("BATCHLAB_CHROMIUM"):
        return named  # not tried: who names one wants to hear what is wrong with it
    return next(filter(_runs, filter(None, [*map(shutil.which, NAMES), _playwrights()])), None)


def _playwrights():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if os.path.exists(path) else None


def _runs(path):  # one that was fetched may lack libraries of the system
    return subprocess.run([path, "--version"], capture_output=True).returncode == 0


def fetched():
    """Try to get a Chromium; return its path, or None after a line on stderr for each way that failed."""
    ways = [PLAYWRIGHT]
    if os.environ.get("CI") == "true" and shutil.which("apt-get") and os.geteuid() == 0:
        ways.append(DEBIAN)
    for way in ways:
        for command in way:
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            if done.returncode:
                print(f"no Chromium from `{' '.join(command)}`: it failed", file=sys.stderr)
        if path := found():
            return path
    return None


if __name__ == "__main__":
    print(found() or fetched() or "")
