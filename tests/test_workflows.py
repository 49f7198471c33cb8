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
WRITES = {"publish": {"notebooks": {"contents"}, "pages": {"pages", "id-token"}}}
HANDS_ON = re.compile(r"actions/(checkout|download-artifact|deploy-pages)@")  # what a job that may write may use


def actionlint(path):
    """Return what actionlint says of a workflow file; the empty string when it is content."""
    program = shutil.which("actionlint", path=os.fspath(Path(sys.executable).parent)) or shutil.which("actionlint")
    done = subprocess.run([program, "-no-color", "-shellcheck=", path], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def writes(job):
    """The rights to write that a job asks for."""
    asked = job.get("permissions", {})
    return {asked} if isinstance(asked, str) else {right for right, level in asked.items() if level == "write"}


def run_beside_a_right_to_write(workflow):
    """Return what a job that may write installs or runs besides git: what it runs could take the token."""
    found = []
    for job in workflow["jobs"].values():
        if writes(job) or writes(workflow):
            lines = [line.strip() for step in job["steps"] for line in step.get("run", "").splitlines()]
            found += [line for line in lines if not re.fullmatch(r"git [^;&|`<>]*", line) or "$(" in line]
            used = [step["uses"] for step in job["steps"] if "uses" in step]
            found += [action for action in used if not HANDS_ON.match(action)]
            found += [step["shell"] for step in job["steps"] if "shell" in step]
    return found


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
    asked = {name: writes(job) for name, job in workflow["jobs"].items()}
    assert {name: rights for name, rights in asked.items() if rights} == WRITES.get(path.stem, {})


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_job_that_may_write_installs_and_runs_nothing(path):
    assert run_beside_a_right_to_write(yaml.safe_load(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("rights", ["write-all", {"contents": "write"}, {"contents": "read", "pages": "write"}])
@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize(
    "step",
    [
        {"run": "python -m pip install nbformat"},
        {"run": "git add .\nmake book"},
        {"run": "git add . && ./configure"},
        {"run": "git add $(python names.py)"},
        {"uses": "actions/setup-python@e797f83bcb11b83ae66e0230d6156d7c80228e7c"},
        {"run": "git status", "shell": "python {0}"},
    ],
)
def test_what_runs_beside_a_right_to_write_is_found(step, everywhere, rights):
    job = {"steps": [step]} | ({} if everywhere else {"permissions": rights})
    workflow = {"permissions": rights if everywhere else {}, "jobs": {"job": job}}
    assert len(run_beside_a_right_to_write(workflow)) == 1
    job["permissions"] = workflow["permissions"] = {"contents": "read"}
    assert run_beside_a_right_to_write(workflow) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_no_workflow_pastes_an_expression_into_a_shell(path):
    scripts = [step["run"] for step in steps(yaml.safe_load(path.read_text(encoding="utf-8"))) if "run" in step]
    assert scripts and [script for script in scripts if "${{" in script] == []


def test_publish_sends_every_notebook_to_the_branch_that_the_buttons_open():
    publish = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8"))
    sent = [step["with"]["path"].split() for step in steps(publish) if step.get("with", {}).get("name") == "notebooks"]
    places = sent[0]  # the first job sends them, the second takes them
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
