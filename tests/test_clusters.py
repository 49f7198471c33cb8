"""The same sweep on a Dask and on a Ray cluster; on Dask, with a worker that dies midway."""

import gc
import os
import signal
import sys
import threading
import time
import warnings

import joblib
import pandas
import pytest
from test_resume import GRID, a_run, without_time

from batchlab import sweep

pytestmark = pytest.mark.filterwarnings("default")  # the clusters' own warnings are not ours to mend


@pytest.fixture(scope="module")
def want():
    return without_time(sweep(a_run(), **GRID))


def test_a_dask_worker_killed_midway_changes_nothing(tmp_path, want):
    distributed = pytest.importorskip("distributed")
    lanes, seen = len(want.groupby(["batch_size", "lr", "seed"])), []

    def kill_midway(victim):
        until = time.monotonic() + 60
        while not seen and time.monotonic() < until:
            if done := len(list(tmp_path.glob("*.json"))):
                os.kill(victim, signal.SIGKILL)
                seen.append(done)
            time.sleep(0.002)

    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster,
        distributed.Client(cluster) as client,
        joblib.parallel_config("dask"),
    ):
        victim = min(client.run(os.getpid).values())
        killer = threading.Thread(target=kill_midway, args=(victim,))
        killer.start()
        got = sweep(a_run(), cache=tmp_path, **GRID)
        killer.join()
        assert victim not in client.run(os.getpid).values()
    assert 0 < seen[0] < lanes, "the worker did not die midway"
    pandas.testing.assert_frame_equal(without_time(got), want, check_exact=True)


@pytest.mark.skipif(sys.platform == "win32", reason="Ray is not among the test tools on Windows")
def test_ray_gives_the_same_table(want, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_raylet_start_waiting_time_s", "180")  # its own half minute is short on a busy machine
    from ray.util.joblib import register_ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        try:
            register_ray()
            with joblib.parallel_config("ray", n_jobs=2):
                got = sweep(a_run(), **GRID)
        finally:
            ray.shutdown()
            gc.collect()  # its processes, left to the collector, would warn in some later test
    pandas.testing.assert_frame_equal(without_time(got), want, check_exact=True)
