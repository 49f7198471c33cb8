"""Processes of a sweep's own: started where they pay, one thread each, gone when it is."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
import torch
from test_sweep import a_run

from batchlab import sweep
from batchlab.engine import choice

SRC = str(Path(__file__).parents[1] / "src")
LONG = """
import sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(2)
from test_sweep import a_run
from batchlab import sweep
from batchlab.engine import choice
choice.WORKERS_PAY = 0.0
sweep(a_run("cnn", steps=300_000), lr=[0.01, 0.02, 0.03, 0.04], seed=[0], engine="loop")
"""


def children(pid):
    """The processes started by this one that compute: /proc knows their parent and their command."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            command = (path.parent / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue
        if parent == pid and b"popen_loky" in command:
            found.append(int(path.parent.name))
    return found


def until(condition, seconds=60):
    stop = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < stop, "waited in vain"
        time.sleep(0.1)
    return found


def test_where_they_pay_lanes_are_trained_in_processes_and_are_the_same(monkeypatch):
    run = a_run("cnn", steps=20)
    want = sweep(run, lr=[0.01, 0.1], seed=[0, 1], engine="loop", n_jobs=1)
    monkeypatch.setattr(choice, "WORKERS_PAY", 0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        got = sweep(run, lr=[0.01, 0.1], seed=[0, 1], engine="loop")
    finally:
        torch.set_num_threads(before)
    pandas.testing.assert_frame_equal(got.drop(columns="seconds"), want.drop(columns="seconds"), rtol=1e-4)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc who is whose child")
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_workers_end_with_the_sweep(by):
    code = LONG.format(paths=[SRC, str(Path(__file__).parent)])
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        workers = until(lambda: len(found := children(parent.pid)) == 2 and found)
        time.sleep(3)  # until they train
        os.kill(parent.pid, by)
        parent.wait(30)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 15)
    finally:
        parent.kill()
        parent.wait()
