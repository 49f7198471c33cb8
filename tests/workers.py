"""What test_parallel.py lets several workers compute. They are forked from a server that has imported torch.

python tests/workers.py JOB SIZE FOLDER      writes FOLDER/answers.json: what each worker returned, in order
"""

import json
import multiprocessing
import os
import signal
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from batchlab import Run, data, fit, models, noise, optim, parallel, schedules

PADDING = -100
PATIENCE = 60  # seconds to wait for another worker
DIGITS = data.digits()
X, Y = DIGITS.train
SHORT = replace(DIGITS, train=(X[:151], Y[:151]))  # ragged for most batch sizes


def mlp(dtype=torch.float64, **more):
    return models.build(models.mlp((64, 16, 10), **more), seed=0).to(dtype).train()


def gradient(model):
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()]).clone()


def apart(found, want):
    """Distance over length."""
    return float((found - want).norm() / want.norm())


def of_one(model, x, y, loss=cross_entropy):
    """The gradient of the whole batch, without any worker."""
    model.zero_grad()
    loss(model(x), y).backward()
    return gradient(model)


def of_all(model, x, y, workers, loss=cross_entropy, weight=1.0):
    """The gradient that DistributedDataParallel leaves on every worker."""
    wrapped = DistributedDataParallel(model)
    wrapped.zero_grad()
    (loss(wrapped(x), y) * weight).backward()
    return gradient(model)


# ---------------------------------------------------------------- the gradient, and when it is another


def gradients(workers):
    """Distances from the big batch's gradient, by name; each counter-example, and mended."""
    found = {}
    for dtype in (torch.float32, torch.float64):
        x, y = X[:64].to(dtype), Y[:64]
        mine = parallel.shard(range(64), workers)
        want = of_one(mlp(dtype), x, y)
        found[f"ddp {str(dtype)[6:]}"] = apart(of_all(mlp(dtype), x[mine], y[mine], workers), want)
    x = X.double()
    for part in (batchnorm, ragged, tokens, dropout, clipping, accumulation, local_steps, noise_scale):
        found |= part(x, workers)
    return found


def batchnorm(x, workers):
    x, y = x[:64], Y[:64]
    mine = parallel.shard(range(64), workers)
    want = of_one(mlp(norm="batch"), x, y)
    plain = of_all(mlp(norm="batch"), x[mine], y[mine], workers)
    ghosts = of_one(mlp(norm="ghost", ghost=64 // workers.size), x, y)
    synced = nn.Sequential(*(Synced(m) if isinstance(m, nn.BatchNorm1d) else m for m in mlp(norm="batch")))
    try:
        nn.SyncBatchNorm(3)(torch.zeros(4, 3))
        refused = ""
    except ValueError as error:
        refused = str(error)
    return {
        "batchnorm": apart(plain, want), "batchnorm, ghosts": apart(plain, ghosts), "SyncBatchNorm": refused,
        "batchnorm, synced": apart(of_all(synced, x[mine], y[mine], workers), want),
    }  # fmt: skip


class Sum(torch.autograd.Function):
    """The sum over all workers. Every worker's loss depends on it, so its gradient is a sum over all, too."""

    @staticmethod
    def forward(ctx, x):
        distributed.all_reduce(total := x.clone())
        return total

    backward = forward


class Synced(nn.Module):
    """What torch.nn.SyncBatchNorm does on GPUs: moments of the whole batch, summed so that gradients pass through."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x):
        sums = torch.cat([x.new_tensor([len(x)]), x.sum(0), x.square().sum(0)])
        sums = Sum.apply(sums)
        mean, square = (sums[1:] / sums[0]).chunk(2)
        return (x - mean) / (square - mean**2 + self.eps).sqrt() * self.weight + self.bias


def ragged(x, workers):
    count = 8 * workers.size + 1
    x, y = x[:count], Y[:count]
    mine = parallel.shard(range(count), workers)
    want, share = of_one(mlp(), x, y), parallel.loss_weight(len(mine), workers)
    plain, mended = (of_all(mlp(), x[mine], y[mine], workers, weight=w) for w in (1.0, share))
    return {"ragged": apart(plain, want), "ragged, weighted": apart(mended, want), "ragged, rows": len(mine)}


def tokens(x, workers):
    """Sequences of 8 tokens; worker 0's are full, of the last worker's only one is not padding."""

    def model():
        return nn.Sequential(nn.Unflatten(1, (8, 8)), models.build(models.mlp((8, 12, 5)), seed=0).double())

    def loss(outputs, y):  # of a worker with no token at all it is 0, not 0 / 0
        return cross_entropy(outputs.flatten(0, 1), y.flatten(), ignore_index=PADDING, reduction="sum") / max(
            int((y != PADDING).sum()), 1
        )

    x = x[: 2 * workers.size]
    y = (x[:, ::8] * 1000).long() % 5
    y[-2:] = PADDING
    y[-1, 0] = 1
    empty = y.clone()
    empty[-1] = PADDING
    mine, found = parallel.shard(range(len(x)), workers), {}
    for name, labels in (("tokens", y), ("tokens, none", empty)):
        want, own = of_one(model(), x, labels, loss), labels[mine]
        share = parallel.loss_weight(int((own != PADDING).sum()), workers)
        plain, mended = (of_all(model(), x[mine], own, workers, loss, w) for w in (1.0, share))
        found |= {name: apart(plain, want), f"{name}, weighted": apart(mended, want)}
    return found


def dropout(x, workers):
    """The same seed on all workers: all drop alike. Mended: the whole batch's mask everywhere, and one's own rows."""
    x, y = x[:64], Y[:64]
    mine, drop = parallel.shard(range(64), workers), nn.Dropout(0.5)

    def masked(rows, size):
        torch.manual_seed(0)
        masks = [drop(torch.ones(size, 64, dtype=x.dtype)) for _ in range(2)]
        return [x[rows] * mask[rows if size == 64 else slice(None)] for mask in masks]

    want = sum(of_one(mlp(), part, y) for part in masked(slice(None), 64))
    alike, mended = (
        sum(of_all(mlp(), part, y[mine], workers) for part in masked(mine, size)) for size in (len(mine), 64)
    )
    torch.manual_seed(0)
    first = drop(torch.ones(8)).tolist()
    everyone = [None] * workers.size
    distributed.all_gather_object(everyone, first)
    return {
        "dropout": apart(alike, want), "dropout, one mask": apart(mended, want),
        "dropout, alike": all(other == first for other in everyone),
    }  # fmt: skip


def clipping(x, workers, most=0.5):
    x, y = x[:64], Y[:64]
    mine = parallel.shard(range(64), workers)
    model = mlp()
    of_one(model, x, y)
    assert float(clip_grad_norm_(model.parameters(), most)) > most
    want = gradient(model)
    of_one(model, x[mine], y[mine])  # each its own, clipped, and then the mean
    clip_grad_norm_(model.parameters(), most)
    early = gradient(model)
    distributed.all_reduce(early)
    of_all(model, x[mine], y[mine], workers)
    clip_grad_norm_(model.parameters(), most)
    return {"clipped first": apart(early / workers.size, want), "clipped after": apart(gradient(model), want)}


def accumulation(x, workers, pieces=4):
    x, y = x[:64], Y[:64]
    mine, want, found = parallel.shard(range(64), workers), of_one(mlp(), x, y), {}
    for name in ("no_sync", "sync"):
        model = DistributedDataParallel(mlp())
        sums = []
        model.register_comm_hook(None, lambda _, bucket, sums=sums: sent(bucket, sums))
        for i, rows in enumerate(torch.tensor(mine).chunk(pieces)):
            with model.no_sync() if name == "no_sync" and i < pieces - 1 else nullcontext():
                (cross_entropy(model(x[rows]), y[rows]) / pieces).backward()
        found |= {name: apart(gradient(model), want), f"{name}, sums": len(sums)}
    return found


def sent(bucket, sums):
    sums.append(1)
    mean = bucket.buffer() / distributed.get_world_size()
    return distributed.all_reduce(mean, async_op=True).get_future().then(lambda done: done.value()[0])


def local_steps(x, workers):
    """One local step of plain SGD, averaged, is a step of the big batch; rounds of several against torch's Nesterov."""
    x, y = x[:64], Y[:64]
    mine, model = parallel.shard(range(64), workers), mlp()
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    flat = torch.cat([p.reshape(-1) for p in before.values()])
    want = flat - 0.1 * of_one(model, x, y)
    after = stepped(before, x[mine], y[mine], 1)
    new, _ = parallel.outer_step(before, after, None, workers)
    found = {"local SGD": apart(torch.cat([p.reshape(-1) for p in new.values()]), want)}

    twin = flat.clone().requires_grad_()
    outer, velocity = torch.optim.SGD([twin], lr=0.7, momentum=0.9, nesterov=True), None
    for _ in range(3):
        shards = [parallel.shard(range(64), replace(workers, rank=r)) for r in range(workers.size)]
        ends = [torch.cat([p.reshape(-1) for p in stepped(before, x[r], y[r], 5).values()]) for r in shards]
        twin.grad = twin.detach() - torch.stack(ends).mean(0)
        outer.step()
        after = stepped(before, x[mine], y[mine], 5)
        before, velocity = parallel.outer_step(before, after, velocity, workers, lr=0.7, momentum=0.9)
    found["DiLoCo"] = apart(torch.cat([p.reshape(-1) for p in before.values()]), twin.detach())
    return found


def stepped(params, x, y, steps):
    model = mlp()
    model.load_state_dict(params)
    for _ in range(steps):
        of_one(model, x, y)
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
    return {k: p.detach().clone() for k, p in model.named_parameters()}


def noise_scale(x, workers, steps=5):
    """The pairs that the workers' gradients give, against all shards' gradients computed by one."""
    model = DistributedDataParallel(mlp())
    watch, twin, small, big = noise.Distributed(model, each=16), mlp(), [], []
    for step in range(steps):
        rows = torch.arange(16 * workers.size) + 16 * workers.size * step
        mine = torch.tensor(parallel.shard(rows.tolist(), workers))
        model.zero_grad()
        cross_entropy(model(x[mine]), Y[mine]).backward()
        watch.step()
        parts = torch.stack([of_one(twin, x[part], Y[part]) for part in rows.chunk(workers.size)])
        small.append(float(parts.square().sum(1).mean()))
        big.append(float(parts.mean(0).square().sum()))
    found, want = (np.array(pair) for pair in (watch.small + watch.big, small + big))
    scale = noise.two_batch(small, big, 16, 16 * workers.size).trace.estimate
    return {
        "noise": float(np.abs(found / want - 1).max()),
        "noise scale": watch.noise_scale().trace.estimate / scale - 1,
    }


# ---------------------------------------------------------------- whole runs

PLAIN = Run(
    data=SHORT, model=models.mlp((64, 16, 10)), optimizer=optim.momentum(0.9), lr=0.05, batch_size=16, epochs=3,
    precision="float64", device="cpu", evaluate=("train",),
)  # fmt: skip
RUNS = {
    "momentum, ragged batches": PLAIN,
    "AdamW in pieces, growing batches": replace(
        PLAIN, optimizer=optim.adamw(), lr=0.002, micro_batch=2, batch_schedule=schedules.stages((1, 2), (151,)),
        l1=1e-4, ema=0.9, lr_schedule=schedules.warmup(100),
    ),
    "to a target": replace(PLAIN, epochs=None, steps=200, evaluate_every=32, target=("train_accuracy", 0.8)),
    "diverges": replace(PLAIN, lr=1e6, optimizer=optim.sgd()),
}  # fmt: skip


def flat(history, which="parameters"):
    return torch.cat([p.reshape(-1) for p in getattr(history, which).values()])


def runs(workers):
    """``parallel.fit_run`` beside ``fit``: distance of weights, of averaged ones, of the tables; what they say."""
    found = {}
    for name, run in RUNS.items():
        ours, want = parallel.fit_run(run, workers), fit(run)
        same = ["step", "examples", "lr", "batch_size"]
        assert ours.table[same].equals(want.table[same])
        losses = [torch.tensor(h.table[["batch_loss", "train_loss"]].to_numpy()).nan_to_num() for h in (ours, want)]
        found[name] = {
            "apart": apart(flat(ours), flat(want)), "losses": apart(*losses),
            "averaged": apart(flat(ours, "averaged"), flat(want, "averaged")) if run.ema else 0.0,
            "says": [ours.reached, want.reached, ours.diverged, want.diverged],
        }  # fmt: skip
    found["dropout"] = masks(workers)
    found["errors"] = {name: refused(job, workers) for name, job in WRONG.items()}
    return found


def masks(workers):
    """A step with dropout on examples that are all alike: each worker's own gradient, and the counters afterwards."""
    alike = replace(SHORT, train=(X[:1].repeat(16, 1), Y[:1].repeat(16)))
    run = replace(PLAIN, data=alike, model=models.mlp((64, 16, 10), dropout=0.5), steps=1, epochs=None)
    own, seen = parallel.gradient, []
    parallel.gradient = lambda *arguments: seen.append(own(*arguments)) or seen[-1]
    history = parallel.fit_run(run, workers)
    parallel.gradient = own
    draws = {name: int(b) for name, b in history.buffers.items()}
    assert draws == {name: int(b) for name, b in fit(run).buffers.items()}
    return float(torch.cat([g.reshape(-1) for g in seen[0][1].values()]).norm())


def refused(job, workers):
    try:
        job(workers)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return None


WRONG = {
    "BatchNorm": lambda w: parallel.fit_run(replace(PLAIN, model=models.mlp((64, 16, 10), norm="batch")), w),
    "Dropout": lambda w: parallel.fit_run(replace(PLAIN, model=dropping_model), w),
    "batch_size = 1": lambda w: parallel.fit_run(replace(PLAIN, data=replace(SHORT, train=(X[:33], Y[:33]))), w),
    "len(batch)": lambda w: parallel.shard([0], w),
    "the sum of n": lambda w: parallel.loss_weight(0, w),
    "torch.distributed": lambda w: parallel.rendezvous().__enter__(),
    "model = 'Sequential'": lambda w: noise.Distributed(mlp(), each=2),
    "backward passes": lambda w: noise.Distributed(DistributedDataParallel(mlp()), each=2).step(),
}


def dropping_model(seed):
    return nn.Sequential(nn.Linear(64, 10), nn.Dropout(0.5))


# ---------------------------------------------------------------- workers killed midway

# Every output has a gradient of 1, whatever the weights, and example i reaches weight i only: at the end -w / lr * B
# says how often each example was used. B = 12 divides N; 2 and 3 workers have equal shards, 5 workers ragged ones.
N, EPOCHS, LR = 60, 4, 0.5
EYE = (torch.eye(N), torch.zeros(N, 1))


def mean_output(outputs, targets):
    return outputs.mean()


def zeros(seed):
    nn.init.zeros_((layer := nn.Linear(N, 1, bias=False)).weight)
    return layer


COUNTS = Run(
    data=data.Dataset("one at a time", False, EYE, EYE, EYE), model=zeros, optimizer=optim.sgd(), lr=LR,
    batch_size=12, epochs=EPOCHS, loss=mean_output, precision="float64", device="cpu", evaluate=(),
)  # fmt: skip
LONG = replace(PLAIN, precision="float32", model=models.mlp((64, 16, 10), dropout=0.2), epochs=5, ema=0.9)  # 50 steps
OTHER = replace(LONG, model=models.mlp((64, 16, 10)))  # without dropout, whose masks are the workers' own
KEPT = {"counts": COUNTS, "long": LONG, "other": OTHER, "faster": replace(OTHER, lr=0.06)}
KILLS = {"counts": (0, 1, 2, 5, 6, 7, 11, 13, 18, 19), "long": (0, 1, 6, 7, 20, 23, 33, 38, 44, 49)}
WRITING = {"counts": 7, "long": 23}  # here it dies while the checkpoint is being written


def train(name, folder, every=4, kills=()):
    """Train under kills: at each of these steps a worker, another each time, ends as by `kill -9`, once."""
    torch.set_num_threads(1)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    own, rename, writing = parallel._gradient, os.replace, WRITING.get(name)

    def alive(step):
        return not (folder / f"killed-{step}").exists()

    def die(step, what):
        (folder / f"killed-{step}").write_text(what)
        os.kill(os.getpid(), signal.SIGKILL)

    def mortal(run, model, now, x, y, index, workers):
        step = now["step"]
        if step in kills and step != writing and workers.rank == kills.index(step) % workers.size and alive(step):
            die(step, f"worker {workers.rank}")
        return own(run, model, now, x, y, index, workers)

    def torn(new, path):
        if writing in kills and alive(writing) and torch.load(new, weights_only=True)["now"]["step"] == writing + 1:
            Path(new).write_bytes(b"half a checkpoint")
            die(writing, "writing")
        rename(new, path)

    parallel._gradient, os.replace = mortal, torn
    with parallel.rendezvous(timeout=PATIENCE) as workers:
        try:
            history = parallel.fit_run(KEPT[name], workers, folder=folder, every=every)
        except RuntimeError as gone:
            (folder / f"gone-{workers.rank}").write_text(str(gone))
            raise
        return history.parameters, history.averaged, history.buffers, history.table.drop(columns="seconds")


def kills(size, folder):
    """Counts and a network, left alone and killed ten times; and going on with another number of workers."""
    left = {name: launch(train, size, name, folder / f"{name} alone")[0] for name in KILLS}
    hit = {name: launch(train, size, name, folder / f"{name} killed", 4, KILLS[name], restarts=10)[0] for name in KILLS}
    used = -hit["counts"][0]["weight"].flatten() / LR * COUNTS.batch_size
    found = {
        "used": used.tolist(),
        "kills": {n: sorted(p.read_text() for p in (folder / f"{n} killed").glob("killed-*")) for n in KILLS},
        "same bits": {name: same(left[name], hit[name]) for name in KILLS},
        "same table": {name: left[name][3].equals(hit[name][3]) for name in KILLS},
    }
    alone = launch(train, size, "other", folder / "other alone")[0]
    # with time for the other to say what it misses, before the agent ends it
    error = launch(train, size, "other", folder / "other", 4, (23,), expect="failure", patience=3)
    found["error"] = error
    found["gone"] = [p.read_text() for p in (folder / "other").glob("gone-*")]
    more = launch(train, 5, "other", folder / "other")[0]
    found["other number"] = apart(vector(more[0]), vector(alone[0]))
    found["other number, same bits"] = same(more, alone)
    before = launch(train, 5, "counts", folder / "counts other", 4, (9,), expect="failure")
    assert "SIGKILL" in before
    used = -launch(train, 3, "counts", folder / "counts other")[0][0]["weight"].flatten() / LR * COUNTS.batch_size
    found["used by others"] = used.tolist()
    found["another run"] = launch(train, size, "faster", folder / "other", 4, expect="failure")
    return found


def same(one, other):
    return all(torch.equal(one[i][k], other[i][k]) for i in range(3) if one[i] is not None for k in one[i])


def vector(named):
    return torch.cat([p.reshape(-1) for p in named.values()])


def launch(job, size, *arguments, restarts=0, expect=None, patience=0.05):
    """Let ``size`` workers do a job, as `torchrun --nproc-per-node=size --max-restarts=restarts` does.

    They are forked, which is quick, from a server without threads: a fork of this process, which has some, may hang.
    """
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=size, run_id="test", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=restarts, start_method="forkserver",
        monitor_interval=patience,
    )  # fmt: skip
    try:
        answers = elastic_launch(config, job)(*arguments)
    except Exception as error:
        if expect is None:
            raise
        return str(error)
    assert expect is None, "it was to fail"
    return [answers[rank] for rank in range(size)]


def grouped(job):
    torch.set_num_threads(1)
    with parallel.rendezvous(timeout=PATIENCE) as workers:
        return JOBS[job](workers)


JOBS = {"gradients": gradients, "runs": runs}


def main(job, size, folder):
    answers = kills(int(size), Path(folder)) if job == "kills" else launch(grouped, int(size), job)
    (Path(folder) / "answers.json").write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    import workers  # what the server imports, too: only what has a module's name can be sent there

    multiprocessing.set_forkserver_preload(["workers"])
    workers.main(*sys.argv[1:])
