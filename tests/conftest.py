"""What every test shares: where things are, the built site, and the rule that CI skips nothing."""

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))  # chapters.py holds the form of a chapter for the build and the tests


NOT_FOR_PAGES = ["torch", "pandas", "scipy", "matplotlib", "sklearn", "joblib", "tensorflow"]
LONGEST = [
    "test_browser.py", "test_anywhere.py", ".ipynb", "test_paper.py", "test_parts.py", "test_parallel.py",
    "test_clusters.py", "test_resume.py",
]  # fmt: skip


def pytest_configure():
    """What a shell starts in the background ignores Ctrl-C, and so would the programs that the tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Send the longest files first: one that begins last keeps a worker busy while the others have nothing left."""
    items.sort(key=lambda item: next((i for i, name in enumerate(LONGEST) if name in item.nodeid), len(LONGEST)))


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


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """Say in the last lines what was left out, and why."""
    yield
    skipped = [r for r in terminalreporter.stats.get("skipped", ()) if isinstance(r.longrepr, tuple)]
    left_out = Counter((r.nodeid.split("::")[0], r.longrepr[-1].removeprefix("Skipped: ")) for r in skipped)
    if left_out:
        terminalreporter.section("left out", yellow=True)
    for (file, reason), count in sorted(left_out.items()):
        terminalreporter.line(f"{file}: {count} {'test' if count == 1 else 'tests'}: {reason}", yellow=True)


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
    """Build the site of ``tree`` as `make book` does, warnings being errors; return where its pages are.

    It is built where what `make book` does not install cannot be imported.
    """
    absent = tree.parent / "absent"
    absent.mkdir(exist_ok=True)
    for name in NOT_FOR_PAGES:
        (absent / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name} is not in book/requirements.txt')")
    path = os.pathsep.join(filter(None, [str(absent), os.environ.get("PYTHONPATH")]))
    builder = shutil.which("jupyter-book", path=Path(sys.executable).parent)
    command = [builder, "build", ".", "--warningiserror", "--nitpick", "--keep-going", "--quiet"]
    variables = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, cwd=tree, env=variables, capture_output=True, text=True, encoding="utf-8")
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
