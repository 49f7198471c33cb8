"""Several workers against one: the gradient, and each case in which it is another; whole runs; workers killed midway.

What the workers compute is in workers.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DistributedSampler
from workers import EPOCHS, KILLS, PLAIN, RUNS, WRONG, N

from batchlab import data, fit, parallel

from conftest import ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the elastic agent forks")
EXACT = 1e-12
FAR = 0.02  # of the gradient's length: nobody's rounding


def workers(job, size, folder):
    """The answers of ``size`` workers to a job of workers.py."""
    script = Path(__file__).with_name("workers.py")
    paths = os.pathsep.join([str(ROOT / "src"), str(script.parent)])  # the second: where the forks' server finds it
    variables = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [sys.executable, script, job, str(size), folder], env=variables, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "answers.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=[2, 4])
def found(request, tmp_path_factory):
    answers = workers("gradients", request.param, tmp_path_factory.mktemp("gradients"))
    assert len(answers) == request.param
    return answers


@pytest.fixture(scope="module", params=[3])
def trained(request, tmp_path_factory):
    return workers("runs", request.param, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    return workers("kills", 2, tmp_path_factory.mktemp("kills"))


# ---------------------------------------------------------------- the gradient


def test_the_mean_over_workers_is_the_big_batch_s_gradient(found):
    for answers in found:
        assert answers["ddp float64"] < EXACT
        assert answers["ddp float32"] < 1e-6


@pytest.mark.parametrize(
    ("wrong", "mended"),
    [
        ("batchnorm", "batchnorm, synced"),
        ("ragged", "ragged, weighted"),
        ("tokens", "tokens, weighted"),
        ("tokens, none", "tokens, none, weighted"),
        ("dropout", "dropout, one mask"),
        ("clipped first", "clipped after"),
    ],
)
def test_a_counter_example_and_how_it_is_mended(found, wrong, mended):
    for answers in found:
        assert answers[wrong] > FAR
        assert answers[mended] < EXACT


def test_batchnorm_on_shards_is_ghost_batch_norm(found):
    assert all(answers["batchnorm, ghosts"] < EXACT for answers in found)


def test_torch_s_own_sync_batchnorm_wants_a_gpu(found):
    """So its idea is tested with a layer of our own; on GPUs it is the one to use."""
    assert all("GPU" in answers["SyncBatchNorm"] for answers in found)


def test_workers_with_one_seed_drop_alike(found):
    assert all(answers["dropout, alike"] for answers in found)


def test_ragged_shards_differ_by_one(found):
    rows = [answers["ragged, rows"] for answers in found]
    assert rows == [9] + [8] * (len(found) - 1)


def test_accumulation_sends_once_under_no_sync(found):
    for answers in found:
        assert max(answers["no_sync"], answers["sync"]) < EXACT
        assert (answers["no_sync, sums"], answers["sync, sums"]) == (1, 4)


def test_local_steps(found):
    """One, averaged, is a step of the big batch; rounds of five with momentum are torch's Nesterov on the means."""
    assert all(answers["local SGD"] < EXACT and answers["DiLoCo"] < EXACT for answers in found)


def test_the_noise_scale_from_the_workers_gradients(found):
    assert all(answers["noise"] < EXACT and abs(answers["noise scale"]) < EXACT for answers in found)


# ---------------------------------------------------------------- which examples


def sampled(examples, size, **options):
    """Which examples torch's sampler gives ``size`` workers, in two epochs."""
    samplers = [DistributedSampler(range(examples), size, rank, seed=0, **options) for rank in range(size)]
    return [[i for sampler in samplers for i in sampler] for _ in range(2)], samplers


def test_the_sampler_pads_or_drops_and_a_shard_of_each_batch_does_neither():
    first, _ = sampled(10, 4)
    assert len(first[0]) == 12 and set(first[0]) == set(range(10))  # two of them twice
    fewer, _ = sampled(10, 4, drop_last=True)
    assert len(set(fewer[0])) == 8  # two of them never
    stream = data.index_stream(22, 8, seed=0, epochs=1)
    mine = [i for batch in stream for w in four() for i in parallel.shard(batch, w)]
    assert sorted(mine) == list(range(22))  # 8 + 8 + 6


def four():
    return [parallel.Workers(rank, 4, None) for rank in range(4)]


def test_the_sampler_repeats_its_order_unless_told_the_epoch():
    (one, two), samplers = sampled(12, 4)
    assert one == two
    for sampler in samplers:
        sampler.set_epoch(1)
    assert [i for sampler in samplers for i in sampler] != one
    stream = list(data.index_stream(12, 12, seed=0, epochs=2))
    assert stream[0].tolist() != stream[1].tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("length", [7, 8, 20])
def test_shards_are_the_batch(size, length):
    parts = [parallel.shard(list(range(length)), parallel.Workers(rank, size, None)) for rank in range(size)]
    assert sum(parts, []) == list(range(length))
    assert {len(part) for part in parts} <= {length // size, -(-length // size)}


# ---------------------------------------------------------------- whole runs


@pytest.mark.parametrize("name", RUNS)
def test_a_run_on_several_workers_is_the_run(trained, name):
    for answers in trained:
        got = answers[name]
        assert max(got["apart"], got["losses"], got["averaged"]) < 1e-9
        assert got["says"] == {"to a target": [True, True, False, False], "diverges": [False, False, True, True]}.get(
            name, [False] * 4
        )


def test_each_worker_has_dropout_masks_of_its_own(trained):
    norms = [answers["dropout"] for answers in trained]
    assert len({round(norm, 9) for norm in norms}) == len(norms)


def test_alone_it_is_fit_bit_for_bit():
    with parallel.rendezvous() as alone:
        ours = parallel.fit_run(PLAIN, alone)
    want = fit(PLAIN)
    assert all(torch.equal(ours.parameters[name], want.parameters[name]) for name in want.parameters)
    assert ours.table.drop(columns="seconds").equals(want.table.drop(columns="seconds"))


@pytest.mark.parametrize("named", WRONG)
def test_what_cannot_be_is_refused(trained, named):
    words = {"Dropout": "models.Dropout", "BatchNorm": "SyncBatchNorm", "batch_size = 1": "the last one too"}
    for answers in trained:
        assert named in answers["errors"][named] and words.get(named, "") in answers["errors"][named]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"backend": "mpi"}, "backend = 'mpi'"),
        ({"timeout": 0}, "timeout = 0"),
        pytest.param(
            {"backend": "nccl"}, "0 GPUs", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has one")
        ),
    ],
)
def test_start_refuses(options, named):
    with pytest.raises(ValueError, match=named), parallel.rendezvous(**options):
        pass


@pytest.mark.parametrize(
    ("options", "named"),
    [({"folder": "x"}, "folder, every"), ({"every": 3}, "folder, every"), ({"folder": "x", "every": 0}, "every = 0")],
)
def test_fit_refuses(options, named):
    with parallel.rendezvous() as alone, pytest.raises(ValueError, match=named):
        parallel.fit_run(PLAIN, alone, **options)


@pytest.mark.parametrize("options", [{"lr": 0}, {"momentum": 1}])
def test_outer_step_refuses(options):
    with parallel.rendezvous() as alone, pytest.raises(ValueError, match=f"{[*options][0]} = "):
        parallel.outer_step({"w": torch.ones(1)}, {"w": torch.ones(1)}, None, alone, **options)


@pytest.mark.parametrize("n", [-1, 0.5])
def test_weight_refuses(n):
    with parallel.rendezvous() as alone, pytest.raises(ValueError, match=f"n = {n}"):
        parallel.loss_weight(n, alone)


# ---------------------------------------------------------------- killed midway


def test_ten_times_killed_no_example_is_lost_or_used_twice(killed):
    """The weights themselves count: example i moves weight i only, by as much each time."""
    for name in KILLS:
        assert len(killed["kills"][name]) == 10 and len(set(killed["kills"][name])) == 3  # both, and one while writing
    assert killed["used"] == pytest.approx([EPOCHS] * N, abs=1e-9)


def test_ten_times_killed_the_end_is_that_of_a_run_left_alone_bit_for_bit(killed):
    assert killed["same bits"] == killed["same table"] == {"counts": True, "long": True}


def test_on_another_number_of_workers_it_goes_on_and_agrees_within_rounding(killed):
    assert killed["used by others"] == pytest.approx([EPOCHS] * N, abs=1e-9)  # five workers, one killed; then three
    assert killed["other number"] < 1e-5  # of float32 and 50 steps; two workers, one killed; then five


def test_a_killed_worker_is_named_and_the_others_say_what_they_missed(killed):
    assert "SIGKILL" in killed["error"] and "rank      : 0" in killed["error"]
    (told,) = killed["gone"]
    assert told.startswith("step 23: the sum over 2 workers did not come about (")
    assert "by peer" in told and "--max-restarts" in told


def test_another_run_s_checkpoint_is_refused(killed):
    assert "checkpoint's lr = '0.05': expected 0.06, or another folder" in killed["another run"]


SCRIPT = """
import os, signal, sys
import torch
import batchlab as bl
from batchlab import data, models, optim

run = bl.Run(data=data.mnist1d(200, val=50, test=50), model=models.mlp((40, 16, 10)), optimizer=optim.adam(), lr=0.01,
             batch_size=20, steps=30, device="cpu", evaluate=("train",))
fresh = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"

def killed_at_17(seen, batch_size):  # a schedule of the rate is asked at every step, and only there
    if fresh and "kill" in sys.argv and seen == 340 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0

from dataclasses import replace
with bl.parallel.rendezvous() as workers:
    history = bl.parallel.fit_run(replace(run, lr_schedule=killed_at_17), workers, folder=sys.argv[1], every=5)
    if workers.rank == 0:
        torch.save(history.parameters, sys.argv[1] + "/end.pt")
"""


def test_torchrun_itself_starts_a_killed_worker_again(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    variables = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    ends = []
    for folder in ("alone", "kill"):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        done = subprocess.run(
            [*torchrun, "--max-restarts=1", tmp_path / "script.py", tmp_path / folder, folder],
            env=variables, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("exitcode: -9" in done.stderr) == (folder == "kill")
        ends.append(torch.load(tmp_path / folder / "end.pt", weights_only=True))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
