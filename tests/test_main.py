"""The command line: a problem file of one's own, a template, settings moved; errors in one line."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

import batchlab as bl
from batchlab.__main__ import TEMPLATE, main

from conftest import ROOT

FAST = ["--seconds", "1.5", "--processor-time", "--most", "32", "--memory", "500M", "--quiet"]


def test_the_template_is_a_problem_that_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0 and (tmp_path / "my_problem.py").read_text() == TEMPLATE
    assert main(["init"]) == 2 and "my_problem.py" in capsys.readouterr().err  # never over a file that is there
    assert main(["advise", "my_problem.py", *FAST, "--save", "found.html", "--save", "found.json"]) == 0
    said = capsys.readouterr()
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["headline"] in said.out and found["name"] == "my_problem" and said.err == ""
    assert "<svg" in (tmp_path / "found.html").read_text()
    assert sorted(os.listdir(tmp_path)) == ["found.html", "found.json", "my_problem.py"]


def test_a_file_may_import_what_lies_beside_it_and_define_a_problem(tmp_path, capsys):
    (tmp_path / "beside_it.py").write_text("import torch\nmodel = torch.nn.Linear(2, 1)\n")
    (tmp_path / "p.py").write_text(
        "import torch, batchlab as bl\nfrom beside_it import model\n"
        "problem = bl.Problem(model, torch.nn.functional.mse_loss, (torch.ones(64, 2), torch.zeros(64, 1)),\n"
        "    torch.optim.SGD(model.parameters(), lr=.1), 8)\n"
    )
    path = sys.path.copy()
    assert main(["advise", str(tmp_path / "p.py"), *FAST]) == 0
    assert capsys.readouterr().out.startswith("Train with a batch of") and sys.path == path


BAD = {
    "no file": (["advise", "nowhere.py"], "FILE = 'nowhere.py'"),
    "a file without a problem": (["advise", "empty.py"], "model, loss, data, optimizer"),
    "an ending": (["advise", "empty.py", "--save", "a.pdf"], "--save = 'a.pdf'"),
    "a folder that is not": (["advise", "empty.py", "--save", "no/where.html"], "--save = 'no/where.html'"),
    "no time": (["advise", "good.py", "--seconds", "0"], "seconds = 0.0"),
    "an objective": (["advise", "good.py", "--objective", "loss"], "objective = 'loss'"),
    "a deadline": (["advise", "good.py", "--deadline", "3"], "deadline = 3.0"),
    "an optimizer": (
        ["rescale", "--lr", ".1", "--batch", "2", "--to", "4", "--optimizer", "lion"],
        "optimizer = 'lion'",
    ),
    "a batch": (["rescale", "--lr", ".1", "--batch", "0", "--to", "4", "--optimizer", "sgd"], "batch_size = 0"),
}


@pytest.mark.parametrize("bad", BAD)
def test_errors_are_one_line_and_name_what_is_wrong(tmp_path, monkeypatch, capsys, bad):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "good.py").write_text(TEMPLATE)
    arguments, named = BAD[bad]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and named in said and said.count("\n") == 1


EXAMPLES = [
    p
    for p in sorted((ROOT / "book" / "examples").glob("advise_*.py"))
    if "gpt2" not in p.name or find_spec("transformers")
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what transformers imports
@pytest.mark.parametrize("file", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_advised(file, capsys):
    assert main(["advise", str(file), *FAST]) == 0
    assert capsys.readouterr().out.startswith("Train with a batch of ")


@pytest.mark.parametrize("text", ["2X", "many", ""])
def test_memory_is_a_number_of_bytes(text, capsys):
    with pytest.raises(SystemExit):
        main(["advise", "p.py", "--memory", text])
    assert "2G, 500M" in capsys.readouterr().err


def test_rescale_prints_what_the_function_returns(capsys):
    assert main("rescale --lr .1 --batch 256 --to 2048 --optimizer adamw --beta2 .99 --warmup-steps 100".split()) == 0
    told = bl.rescale({"lr": 0.1, "beta2": 0.99, "warmup_steps": 100.0}, 256, 2048, optimizer="adamw")
    assert capsys.readouterr().out == f"{told}\n"


def test_the_help_says_that_the_file_is_run(capsys):
    with pytest.raises(SystemExit):
        main(["advise", "--help"])
    assert "RUN AS PYTHON CODE" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_ctrl_c_leaves_nothing_behind(tmp_path):
    (tmp_path / "p.py").write_text(TEMPLATE)
    command = [
        sys.executable,
        "-m",
        "batchlab",
        "advise",
        "p.py",
        "--seconds",
        "60",
        "--memory",
        "500M",
        "--save",
        "a.html",
    ]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while "memory" not in running.stderr.readline():
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "") and "interrupted" in err and "Traceback" not in err
    assert [name for name in os.listdir(tmp_path) if name != "__pycache__"] == ["p.py"]
