"""A sweep survives being killed: its own process, and the workers of a cluster."""

import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pandas

from batchlab import Run, data, models, optim, sweep
from batchlab.engine import kernel

SRC = str(Path(__file__).parents[1] / "src")
GRID = dict(batch_size=[4, 16], lr=[0.01, 0.03, 0.1], seed=range(40))
KILLED_AGAIN_AND_AGAIN = """
import os, signal, sys, time
sys.path[:0] = {paths!r}
from test_resume import GRID, a_run
from batchlab.engine import kernel
from batchlab import sweep
kernel.library()
for line in sys.stdin:  # a delay and a directory
    delay, folder = line.strip().split(" ", 1)
    child = os.fork()
    if not child:
        sweep(a_run(), cache=folder, n_jobs=1, **GRID)
        os._exit(0)
    time.sleep(float(delay))
    os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def a_run():
    return Run(
        data=data.two_spirals(400, val=20, test=20), model=models.mlp((2, 32, 2)), optimizer=optim.momentum(), lr=0.1,
        batch_size=4, epochs=20, device="cpu", evaluate_every=2000,
    )  # fmt: skip


def without_time(table):
    return table.drop(columns="seconds")


def test_killed_twenty_times_a_sweep_still_gives_the_same_table(tmp_path):
    kernel.library()  # compile first, so that the sweep alone is timed
    began = time.perf_counter()
    want = without_time(sweep(a_run(), **GRID))
    whole = time.perf_counter() - began
    code = KILLED_AGAIN_AND_AGAIN.format(paths=[SRC, str(Path(__file__).parent)])
    chance, killed, kept = random.Random(0), 0, set()
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as other:
        for attempt in range(100):
            folder = tmp_path / str(attempt // 4)  # each directory sees four deaths
            print(chance.uniform(0, 0.6 * whole), folder, file=other.stdin, flush=True)
            if int(other.stdout.readline()) == -signal.SIGKILL:
                killed += 1
                kept.add(len(list(folder.glob("*.json"))))
            if killed == 20:
                break
        other.stdin.close()
    assert killed == 20 and len(kept) > 3, f"the kills did not come at various moments of the sweep: {killed}, {kept}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a damaged file would warn
        for folder in tmp_path.iterdir():
            got = sweep(a_run(), cache=folder, **GRID)
            pandas.testing.assert_frame_equal(without_time(got), want, check_exact=True)
            assert without_time(sweep(a_run(), cache=folder, **GRID)).equals(without_time(got))


def test_processes_give_the_same_table():
    want = without_time(sweep(a_run(), **GRID))
    got = without_time(sweep(a_run(), n_jobs=2, **GRID))
    pandas.testing.assert_frame_equal(got, want, check_exact=True)
