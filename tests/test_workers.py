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
import os, pathlib
from dataclasses import replace
from test_sweep import a_run
from batchlab import models, sweep
from batchlab.engine import choice

def model(seed):
    pathlib.Path({folder!r}, str(os.getpid())).touch()
    return models.cnn((1, 40), 10)(seed)

choice.WORKERS_PAY = 0.0
sweep(replace(a_run("cnn", steps=300_000), model=model), lr=[0.01, 0.02, 0.03, 0.04], seed=[0], engine="loop")
"""


def until(condition, seconds=300):
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


@pytest.mark.skipif(os.name != "posix", reason="on Windows a worker ends with its lane")
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_workers_end_with_the_sweep(by, tmp_path):
    code = LONG.format(paths=[SRC, str(Path(__file__).parent)], folder=str(tmp_path))
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        workers = until(
            lambda: len(pids := {int(path.name) for path in tmp_path.iterdir()}) == 3 and pids - {parent.pid}
        )
        os.kill(parent.pid, by)
        until(lambda: not any(map(alive, workers)))  # joblib itself may be slow to leave after Ctrl-C
    finally:
        parent.kill()
        parent.wait()


FAULTS = """
import sys
sys.path.insert(0, {src!r})
import os, resource
import joblib, torch
from batchlab.engine.sweep import _settle

def faults(parent):
    _settle(parent)
    for step in range(8):
        if step == 3:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.ones(2_500_000) for _ in range(8)]  # 10 MB each: more than is kept by default
        del blocks
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5

print(*joblib.Parallel(n_jobs=2)([joblib.delayed(faults)(os.getpid())]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of GNU's C library")
def test_a_worker_keeps_the_memory_that_it_frees():
    """Else each 4 kB of 80 MB, some 20,000, is a page fault in every step."""
    # by default it depends on what happens to lie above a tensor
    never_keep = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
    faults = subprocess.check_output([sys.executable, "-c", FAULTS.format(src=SRC)], env=never_keep)
    assert float(faults) < 1000


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout
