"""The same sweep on a Dask and on a Ray cluster, with a worker that dies midway."""

import gc
import os
import signal
import sys
import threading
import time
import warnings
from functools import cache

import joblib
import pandas
import pytest
from test_resume import SWEEPS, without_time

from batchlab import sweep

pytestmark = pytest.mark.filterwarnings("default")  # the clusters' own warnings are not ours to mend


@cache
def wanted(name):
    """What two processes make of it: as many cut stacks alike."""
    run, given = SWEEPS[name]
    return without_time(sweep(run, n_jobs=2, **given))


@pytest.mark.parametrize("name", SWEEPS)
def test_a_dask_worker_killed_midway_changes_nothing(tmp_path, name):
    distributed = pytest.importorskip("distributed")
    (run, given), want = SWEEPS[name], wanted(name)
    lanes, seen = len(want.groupby(["batch_size", "lr", "seed"])), []

    def kill_midway(victim):
        until = time.monotonic() + 240
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
        got = sweep(run, cache=tmp_path, **given)
        killer.join()
        assert victim not in client.run(os.getpid).values()
    assert 0 < seen[0] < lanes, "the worker did not die midway"
    pandas.testing.assert_frame_equal(without_time(got), want, check_exact=True)


@pytest.fixture(scope="module")
def on_ray():
    """Two of Ray's workers, and a way to a sweep on them."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("RAY_raylet_start_waiting_time_s", "180")  # its own half minute is short on a busy machine
        warnings.simplefilter("ignore")
        from ray.util.joblib import register_ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        register_ray()

        def on_ray(name, restarts, **options):
            warnings.simplefilter("ignore")
            run, given = SWEEPS[name]
            remote = {"max_restarts": restarts, "max_task_retries": -1}
            with joblib.parallel_config("ray", n_jobs=2, ray_remote_args=remote):
                return sweep(run, **options, **given)

        yield on_ray
        ray.shutdown()
        gc.collect()  # its processes, left to the collector, would warn in some later test


@pytest.fixture
def dies_once(tmp_path, monkeypatch):
    """Whichever worker takes the third task ends as by `kill -9` in the midst of it; the file that says so."""
    from batchlab.engine import sweep as module

    own, parent, died = module._train, os.getpid(), tmp_path / "died"

    def mortal(which, *arguments):
        if which == 2 and os.getpid() != parent and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return own(which, *arguments)

    monkeypatch.setattr(module, "_train", mortal)
    return died


@pytest.mark.skipif(sys.platform == "win32", reason="Ray is not among the test tools on Windows")
class TestRay:
    @pytest.mark.parametrize("name", SWEEPS)
    def test_a_worker_killed_midway_changes_nothing(self, on_ray, dies_once, name):
        """With leave to start one again, as its own documentation has it for actors."""
        got = on_ray(name, restarts=1)
        assert dies_once.exists(), "no worker died"
        pandas.testing.assert_frame_equal(without_time(got), wanted(name), check_exact=True)

    def test_without_leave_it_is_an_error_and_the_next_sweep_goes_on(self, on_ray, dies_once, tmp_path):
        from ray.exceptions import ActorDiedError

        with pytest.raises(ActorDiedError, match="worker process has died"):
            on_ray("chain", restarts=0, cache=tmp_path)
        got = on_ray("chain", restarts=0, cache=tmp_path)
        pandas.testing.assert_frame_equal(without_time(got), wanted("chain"), check_exact=True)
