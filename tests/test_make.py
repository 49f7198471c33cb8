"""What `make test` does around the tests: it finds a browser, and says in its last lines what was left out."""

import os
import subprocess
import sys

import browser
import pytest

from conftest import ROOT

SKIPS = """
import pytest
def test_runs(): pass
@pytest.mark.parametrize("n", [1, 2])
def test_skips(n): pytest.skip("no such browser")
@pytest.mark.gpu
@pytest.mark.skipif(True, reason="no such device")
def test_skips_too(): pass
"""


def with_skips(tmp_path, **variables):
    (tmp_path / "test_it.py").write_text(SKIPS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu")
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "test_it.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path, "CI": "", **variables}, capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, list(filter(None, done.stdout.splitlines()))


def test_the_last_lines_say_what_was_left_out_and_why(tmp_path):
    status, said = with_skips(tmp_path)
    assert status == 0 and said[-3:-1] == ["test_it.py: 2 tests: no such browser", "test_it.py: 1 test: no such device"]


def test_in_ci_only_what_needs_a_gpu_may_be_left_out(tmp_path):
    status, said = with_skips(tmp_path, CI="true")
    assert status == 1 and said[-2] == "test_it.py: 1 test: no such device" and "2 failed, 1 passed" in said[-1]


@pytest.mark.parametrize(
    ("named", "on_path", "playwrights", "broken", "found"),
    [
        ("mine", ["chromium"], "own", ["mine"], "mine"),
        (None, ["google-chrome", "chromium-browser"], "own", [], "/bin/chromium-browser"),
        (None, ["google-chrome", "chromium"], "own", ["/bin/chromium"], "/bin/google-chrome"),
        (None, ["chromium"], "own", ["/bin/chromium"], "own"),
        (None, [], "own", ["own"], None),
        (None, [], None, [], None),
    ],
)
def test_the_first_browser_that_runs_is_taken(monkeypatch, named, on_path, playwrights, broken, found):
    monkeypatch.setenv("BATCHLAB_CHROMIUM", named or "")
    monkeypatch.setattr(browser.shutil, "which", lambda name: f"/bin/{name}" if name in on_path else None)
    monkeypatch.setattr(browser, "_playwrights", lambda: playwrights)
    monkeypatch.setattr(browser, "_runs", lambda path: path not in broken)
    assert browser.found() == found


PLAYWRIGHT, UPDATE, INSTALL = browser.PLAYWRIGHT[0], *browser.DEBIAN


@pytest.mark.parametrize(
    ("ci", "user", "then", "ran", "lines"),
    [
        ("true", 0, PLAYWRIGHT, [PLAYWRIGHT], 0),
        ("true", 0, INSTALL, [PLAYWRIGHT, UPDATE, INSTALL], 1),
        ("true", 0, None, [PLAYWRIGHT, UPDATE, INSTALL], 3),
        ("true", 1000, INSTALL, [PLAYWRIGHT], 1),
        ("", 0, INSTALL, [PLAYWRIGHT], 1),  # no reader's own machine is changed
    ],
)
def test_a_browser_is_fetched_where_that_is_allowed(monkeypatch, capsys, ci, user, then, ran, lines):
    """``then`` is the command after which there is a browser; those before it fail, but for the update."""
    seen = []

    def run(command, **_):
        seen.append(command)
        return subprocess.CompletedProcess(command, 0 if command in (then, UPDATE) and then else 1)

    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(browser.os, "geteuid", lambda: user, raising=False)
    monkeypatch.setattr(browser.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(browser.subprocess, "run", run)
    monkeypatch.setattr(browser, "found", lambda: "new" if then in seen else None)
    assert browser.fetched() == ("new" if then in ran else None) and seen == ran
    assert len(capsys.readouterr().err.splitlines()) == lines
