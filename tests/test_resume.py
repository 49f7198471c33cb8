"""A sweep survives being killed: its own process, and the workers of a cluster."""

import random
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pandas
import pytest
from test_sweep import one_thread  # noqa: F401

from batchlab import Run, data, models, optim, sweep
from batchlab.engine import kernel

SRC = str(Path(__file__).parents[1] / "src")
GRID = dict(batch_size=[4, 16], lr=[0.01, 0.03, 0.1], seed=range(40))
KILLED_AGAIN_AND_AGAIN = """
import os, signal, sys, time, torch
sys.path[:0] = {paths!r}
from test_resume import SWEEPS
from batchlab.engine import kernel
from batchlab import sweep
run, given = SWEEPS[{name!r}]
torch.set_num_threads(1)  # as in the test: PyTorch's threads share a sum, and so decide its rounding
kernel.library()
for line in sys.stdin:  # a number of lanes to wait for, a delay, and a directory
    lanes, delay, folder = line.strip().split(" ", 2)
    until, late = len(os.listdir(folder)) + int(lanes), time.monotonic() + 60
    child = os.fork()
    if not child:
        sweep(run, cache=folder, n_jobs=1, **given)
        os._exit(0)
    alive = lambda: not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    while len(os.listdir(folder)) < until and time.monotonic() < late and alive():
        time.sleep(0.001)
    time.sleep(float(delay))
    os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def a_run():
    return Run(
        data=data.two_spirals(400, val=20, test=20), model=models.mlp((2, 32, 2)), optimizer=optim.momentum(), lr=0.1,
        batch_size=4, epochs=20, device="cpu", evaluate_every=2000,
    )  # fmt: skip


def a_cnn(**changes):
    waves = data.mnist1d(60, val=20, test=20, signals=True)
    given = dict(data=waves, model=models.cnn((1, 40), 10, channels=(4, 4), norm="batch"), batch_size=20)
    return replace(a_run(), **given | changes)


FEW = dict(batch_size=[10, 20], lr=[0.01, 0.1], seed=range(3))
SWEEPS = {
    "chain": (a_run(), GRID | {"engine": "native"}),
    "tape": (a_cnn(epochs=300), FEW | {"engine": "native", "seed": range(12)}),
    "stacked": (a_cnn(), FEW | {"engine": "stacked", "batch_size": [5, 10, 15, 20]}),
    "loop": (a_cnn(), FEW | {"engine": "loop"}),
    "compiled": (a_run(), FEW | {"engine": "compiled"}),
}


def without_time(table):
    return table.drop(columns="seconds")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports
@pytest.mark.parametrize(("name", "kills"), [("chain", 20), ("tape", 6), ("stacked", 4), ("loop", 6), ("compiled", 2)])
def test_killed_again_and_again_a_sweep_still_gives_the_same_table(tmp_path, name, kills, one_thread):  # noqa: F811
    run, given = SWEEPS[name]
    kernel.library()  # compile first, so that the sweep alone is timed
    began = time.perf_counter()
    want = without_time(sweep(run, n_jobs=1, **given))
    whole = time.perf_counter() - began
    code = KILLED_AGAIN_AND_AGAIN.format(paths=[SRC, str(Path(__file__).parent)], name=name)
    chance, killed, kept = random.Random(0), 0, set()
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as other:
        for attempt in range(100):
            folder = tmp_path / str(attempt // 4)  # each directory sees four deaths
            folder.mkdir(exist_ok=True)
            # what PyTorch does first in a process takes longer than these small sweeps: wait for what is kept, instead
            lanes, delay = (0, 0.6 * whole) if name == "chain" else (1 + attempt % 3, 0.1 * whole)
            print(lanes, chance.uniform(0, delay), folder, file=other.stdin, flush=True)
            if int(other.stdout.readline()) == -signal.SIGKILL:
                killed += 1
                kept.add(len(list(folder.glob("*.json"))))
            if killed == kills:
                break
        other.stdin.close()
    assert killed == kills, f"{killed} of {kills} were killed in time"
    assert len(kept) > {20: 3, 2: 0}.get(kills, 1), f"the kills did not come at various moments of the sweep: {kept}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a damaged file would warn
        for folder in tmp_path.iterdir():
            got = sweep(run, cache=folder, n_jobs=1, **given)
            pandas.testing.assert_frame_equal(without_time(got), want, check_exact=True)
            assert without_time(sweep(run, cache=folder, n_jobs=1, **given)).equals(without_time(got))


def test_processes_give_the_same_table():
    want = without_time(sweep(a_run(), **GRID))
    got = without_time(sweep(a_run(), n_jobs=2, **GRID))
    pandas.testing.assert_frame_equal(got, want, check_exact=True)
