"""What every test shares: where things are, the built site, and the rule that CI skips nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))  # chapters.py holds the form of a chapter for the build and the tests


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if os.environ.get("CI") == "true" and report.skipped and item.get_closest_marker("gpu") is None:
        report.outcome = "failed"
        report.longrepr = f"skipped, but CI=true lets no gate be skipped: {report.longrepr[-1]}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if os.environ.get("CI") == "true" and report.outcome == "skipped":
        report.outcome = "failed"
        report.longrepr = f"skipped, but CI=true lets no gate be skipped: {report.longrepr[-1]}"
    return report


def working_tree(destination):
    """Copy what git tracks or would track to ``destination`` (a fresh clone, but with what is not committed yet)."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True, encoding="utf-8",
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (destination / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, destination / name)
    return destination


def built(tree):
    """Build the site of ``tree`` as `make book` does, warnings being errors; return where its pages are."""
    builder = shutil.which("jupyter-book", path=Path(sys.executable).parent)
    command = [builder, "build", ".", "--warningiserror", "--nitpick", "--keep-going", "--quiet"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, f"the site does not build without a warning:\n{done.stderr}\n{done.stdout[-2000:]}"
    assert "WARNING" not in done.stderr
    return tree / "_build" / "html"


@pytest.fixture(scope="session")
def site(tmp_path_factory, worker_id):
    """The directory of the pages, built once a run from a clean copy of the working tree."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent
    tree = base / "site"
    with FileLock(base / "site.lock"):
        if not (base / "site.built").exists():
            shutil.rmtree(tree, ignore_errors=True)
            tree.mkdir()
            built(working_tree(tree))
            (base / "site.built").touch()
    return tree / "_build" / "html"
