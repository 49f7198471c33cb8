"""The GitHub workflows are well formed, pinned by commit, and ask for no more rights than they use."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import chapters
from conftest import ROOT

FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}")
WRITES = {("publish", "notebooks"): {"contents"}, ("publish", "pages"): {"pages", "id-token"}}


def actionlint(path):
    """Return what actionlint says of a workflow file; the empty string when it is content."""
    program = shutil.which("actionlint", path=os.fspath(Path(sys.executable).parent)) or shutil.which("actionlint")
    done = subprocess.run([program, "-no-color", "-shellcheck=", path], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_the_workflows_are_there():
    assert [path.stem for path in FILES] == ["ci", "publish"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_actionlint_is_content(path):
    assert actionlint(path) == ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_action_is_pinned_by_commit_and_named_by_release(path):
    text = path.read_text(encoding="utf-8")
    used = [step["uses"] for step in steps(yaml.safe_load(text)) if "uses" in step]
    assert used and [action for action in used if not PINNED.fullmatch(action)] == []
    assert len(re.findall(r"uses: \S+ # v\d+\.\d+\.\d+$", text, re.MULTILINE)) == len(used)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_rights_are_the_least(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] in ({}, {"contents": "read"})
    for name, job in workflow["jobs"].items():
        asked = {right for right, level in job.get("permissions", {}).items() if level == "write"}
        assert asked == WRITES.get((path.stem, name), set())


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_no_workflow_pastes_an_expression_into_a_shell(path):
    scripts = [step["run"] for step in steps(yaml.safe_load(path.read_text(encoding="utf-8"))) if "run" in step]
    assert scripts and [script for script in scripts if "${{" in script] == []


def test_publish_sends_every_notebook_to_the_branch_that_the_buttons_open():
    publish = (ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8")
    places = re.search(r"git add --force (.*)", publish)[1].split()
    assert [p for p in chapters.notebooks(ROOT) if not any(p.relative_to(ROOT).match(place) for place in places)] == []


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("runs-on: ubuntu-latest", "runs-on: ubuntu-lately", "ubuntu-lately"),
        ("timeout-minutes: 90", "timeout-minuets: 90", "timeout-minuets"),
        ("${{ matrix.python }}", "${{ matrix.snake }}", "snake"),
        ("contents: read", "contents: reed", "reed"),
    ],
)
def test_actionlint_finds_a_broken_workflow(tmp_path, right, wrong, says):
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert right in text
    path = tmp_path / "broken.yml"
    path.write_text(text.replace(right, wrong), encoding="utf-8")
    assert says in actionlint(path)
