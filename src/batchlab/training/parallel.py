"""One batch on several workers: torch.distributed under torchrun (gloo between processors, nccl between GPUs).

Every worker holds the whole model, computes the gradient of its ``shard`` of each batch, and all of them apply the mean
over the *batch*. Start the same script W times with ``torchrun --nproc-per-node=W script.py``:

    import batchlab as bl

    with bl.parallel.rendezvous() as workers:
        history = bl.parallel.fit_run(run, workers, folder="kept", every=100)

In a loop of your own, wrap the model in ``torch.nn.parallel.DistributedDataParallel``, cut each batch with ``shard``,
multiply its loss by ``loss_weight``, and clip after the backward pass. Not the big batch's gradient, whatever the
weights: BatchNorm over one shard, and dropout with masks of the worker's own.
"""

import os
import re
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from itertools import islice
from pathlib import Path
from time import perf_counter

import pandas as pd
import torch
from torch import distributed, nn

from batchlab._check import count, fail, number, one_of
from batchlab.training import models
from batchlab.training.check import batch_sizes, check
from batchlab.training.dataset import fingerprint
from batchlab.training.loop import History
from batchlab.training.step import (
    FIRST_SCALE,
    SMALLEST_SCALE,
    average,
    batches,
    due,
    gradient,
    has_diverged,
    learning_rate,
    measure_all,
    meets,
    prepare,
    rescale,
    row,
    scalar,
    size_at,
)

BACKENDS = ("gloo", "nccl")
APART = 2**40  # dropout counters of one worker and the next: more draws than a run makes
FREE = ("data", "device", "progress")  # what may differ between a checkpoint's run and the run that goes on


@dataclass(frozen=True)
class Workers:
    """Who takes part: this worker's ``rank`` from 0 to ``size`` - 1, and the ``device`` it computes on."""

    rank: int
    size: int
    device: torch.device


@contextmanager
def rendezvous(backend=None, timeout=300):
    """Join the workers that torchrun started, and yield ``Workers``; without torchrun, a group of one.

    ``backend``: "nccl" (a GPU for each worker of this machine) or "gloo"; None takes nccl where there are enough GPUs.
    ``timeout`` (s): how long to wait for another worker before that is an error. Raises ValueError for another backend,
    nccl without a GPU for each, and where a group was started before.

    >>> with rendezvous() as workers:
    ...     workers.rank, workers.size
    (0, 1)
    """
    backend = backend if backend is None else one_of("backend", backend, BACKENDS)
    timeout = timedelta(seconds=number("timeout", timeout, above=0))
    if distributed.is_initialized():
        fail("torch.distributed", "initialised", "one rendezvous() at a time, and no init_process_group before it")
    local, here = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    enough = torch.cuda.device_count() >= here
    if backend == "nccl" and not enough:
        fail("backend", backend, f"'gloo': {here} workers here and {torch.cuda.device_count()} GPUs")
    backend = backend or ("nccl" if enough else "gloo")
    device = torch.device("cuda", local) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        store, rank, size = next(distributed.rendezvous("env://", timeout=timeout))
        # torchrun may keep its store over a restart: nobody shall find the address of a worker that is no more there
        store = distributed.PrefixStore(f"{os.environ.get('TORCHELASTIC_RESTART_COUNT')}, {size}", store)
    else:
        store, rank, size = distributed.HashStore(), 0, 1
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    try:
        yield Workers(rank, size, device)
    finally:
        distributed.destroy_process_group()


def shard(batch, workers):
    """Return this worker's part of a batch: consecutive rows, sizes that differ by at most one, nobody without.

    ``batch`` is whatever can be sliced: the same on every worker, an array of indices say. Cut the batch, not the data
    set: then nothing is padded, and which examples make a step depends on neither the worker nor their number.

    >>> [shard([0, 1, 2, 3, 4], Workers(rank, 2, None)) for rank in range(2)]
    [[0, 1, 2], [3, 4]]
    """
    count("len(batch)", len(batch), at_least=workers.size)
    each, more = divmod(len(batch), workers.size)
    first = workers.rank * each + min(workers.rank, more)
    return batch[first : first + each + (workers.rank < more)]


def loss_weight(n, workers):
    """Return W n / sum of all n: times a worker's mean loss over its ``n`` terms, DDP's mean is that over all terms.

    ``n`` counts what the loss averages over: examples, or the tokens that are not padding. A worker may have none (and
    must then hand in a loss of zero, not a mean over nothing). Every worker must call it at the same step. Raises
    ValueError where all have none.

    >>> with rendezvous() as workers:
    ...     loss_weight(3, workers)
    1.0
    """
    n = count("n", n, at_least=0)
    total = torch.tensor(float(n), dtype=torch.float64 if workers.device.type == "cpu" else None, device=workers.device)
    _sum(total, "loss_weight()")
    if total == 0:
        fail("the sum of n", 0, "at least 1")
    return workers.size * n / float(total)


def outer_step(before, after, velocity, workers, lr=1.0, momentum=0.0):
    """After some steps that each worker took alone, make one together: return the new (params, velocity).

    ``before`` and ``after`` are dicts name -> tensor: the parameters that all began with and those this worker came to;
    ``velocity`` is None the first time. The mean of before - after is taken for a gradient by Nesterov's momentum as
    ``torch.optim.SGD`` has it. lr = 1 without momentum is the mean of the workers, local SGD (Stich, 2019); with AdamW
    inside, and 0.7 and 0.9, it is DiLoCo (Douillard et al., 2023). Nothing else is sent.

    >>> with rendezvous() as workers:
    ...     outer_step({"w": torch.ones(2)}, {"w": torch.zeros(2)}, None, workers)[0]
    {'w': tensor([0., 0.])}
    """
    lr, momentum = number("lr", lr, above=0), number("momentum", momentum, at_least=0, below=1)
    moved = {name: before[name] - after[name] for name in before}
    flat = torch.cat([m.reshape(-1) for m in moved.values()]) / workers.size
    _sum(flat, "outer_step()")
    moved = _like(flat, moved)
    velocity = moved if velocity is None else {name: momentum * velocity[name] + m for name, m in moved.items()}
    steps = {name: m + momentum * velocity[name] for name, m in moved.items()}
    return {name: before[name] - lr * s for name, s in steps.items()}, velocity


def fit_run(run, workers, folder=None, every=None):
    """Train ``run`` on all workers; each returns the ``History`` that ``batchlab.fit`` would, up to rounding.

    Every step takes the batch that one process would take, a ``shard`` a worker, and one sum over the workers of the
    gradient and the loss, each weighted by its examples. Every worker evaluates the whole parts. With
    ``run.micro_batch`` a worker accumulates its shard in pieces of that size and the sum is still one a step. Dropout
    has masks of its own on each worker, so there the sum is another draw, not the big batch's.

    With ``folder``, worker 0 keeps a checkpoint there after every ``every`` steps, and at the end; where one lies
    already, the run goes on from it, on any number of workers. So under ``torchrun --max-restarts=...`` a worker may be
    killed: the updates made since the checkpoint are made again from the same batches, and in the weights no example
    counts twice or is missing. On as many workers as before the end is the same, bit for bit.

    Raises ValueError for BatchNorm and for ``torch.nn.Dropout`` (whose generator no checkpoint holds) on more than one
    worker, batches with fewer examples than workers, a checkpoint of another run; RuntimeError, naming the step, where
    another worker has gone.
    """
    model = check(run)
    _check(run, model, workers, folder, every)
    model, params, buffers, parts = prepare(run, model)
    x, y = parts["train"]
    keep = None if folder is None else Path(folder) / "checkpoint.pt"
    now = {
        "step": 0, "examples": 0, "size": run.batch_size, "lr": run.lr, "seconds": 0.0, "scale": FIRST_SCALE,
        "params": params, "averaged": params, "buffers": buffers, "state": run.optimizer.init(params),
        "rows": [], "losses": [], "reached": False, "diverged": False,
    }  # fmt: skip

    def record():
        found = measure_all(run, model, now["averaged"], now["buffers"], parts)
        seen = sum(n for _, n in now["losses"])
        mean = sum(loss * n for loss, n in now["losses"]) / seen if seen else float("nan")
        now["rows"].append(row(run, now["step"], now["examples"], now["seconds"], now["lr"], now["size"], mean, found))
        now["losses"] = []
        now["reached"] = meets(run.target, found)

    if keep is not None and keep.exists():
        now.update(_load(keep, run, x.device))
    else:
        record()
    with models.seeded(run.seed, "dropout", x.device):
        for index in islice(batches(run), now["step"], None):
            if now["reached"] or now["diverged"]:
                break
            begun = perf_counter()
            now["size"], now["lr"] = size_at(run, now["examples"]), learning_rate(run, now["examples"])
            loss, grads, now["buffers"] = _gradient(run, model, now, x, y, index, workers)
            now["losses"].append((loss, len(index)))
            now["diverged"] = bool(has_diverged(loss, run.loss_bound)) or now["scale"][0] < SMALLEST_SCALE
            if now["diverged"]:
                break
            now["scale"], usable = rescale(run, now["scale"], grads)
            if usable:
                lr = scalar(now["lr"], now["params"])
                now["params"], now["state"] = run.optimizer.update(grads, now["state"], now["params"], lr)
                now["averaged"] = average(run, now["averaged"], now["params"])
            before = now["examples"]
            now["step"], now["examples"] = now["step"] + 1, before + len(index)
            now["seconds"] += perf_counter() - begun
            if due(run, before, now["examples"]):
                record()
            if keep is not None and now["step"] % every == 0:
                _save(keep, run, now, workers)
    if now["losses"]:
        record()
        now["reached"] = now["reached"] and not now["diverged"]
    if keep is not None:
        _save(keep, run, now, workers)
    trained = ({k: v.cpu() for k, v in now[name].items()} for name in ("params", "buffers", "averaged"))
    params, buffers, averaged = trained
    table = pd.DataFrame(now["rows"])
    return History(run, table, params, buffers, averaged if run.ema else None, now["diverged"], now["reached"])


def _gradient(run, model, now, x, y, index, workers):
    """Loss and gradient of the whole batch ``index``, on every worker: the sum of the shards' means by their shares."""
    mine = torch.from_numpy(shard(index, workers)).to(x.device)
    own = {k: b + workers.rank * APART if k.endswith("dropout_draw") else b for k, b in now["buffers"].items()}
    loss, grads, own = gradient(run, model, now["params"], own, x[mine], y[mine], now["scale"][0])
    share = len(mine) / len(index)
    flat = torch.cat([*(g.reshape(-1) * share for g in grads.values()), scalar(loss * share, grads).reshape(1)])
    _sum(flat, f"step {now['step']}")  # flat, so that the order in which numbers are added never changes
    buffers = {k: b - workers.rank * APART if k.endswith("dropout_draw") else b for k, b in own.items()}
    return float(flat[-1]) if workers.size > 1 else loss, _like(flat[:-1], grads), buffers


def _sum(tensor, where):
    """The sum over all workers, in place; an error that says what happened if one has gone."""
    try:
        distributed.all_reduce(tensor)
    except RuntimeError as gone:  # of gloo and of nccl
        reason = re.sub(r"^\[.*?\]\s*", "", str(gone)).split(". ")[0]
        raise RuntimeError(
            f"{where}: the sum over {distributed.get_world_size()} workers did not come about ({reason}): a worker has "
            "ended or does not answer; torchrun's log says which, and with --max-restarts it starts all of them again"
        ) from gone


def _like(flat, named):
    """Cut a vector into tensors of the names and shapes in ``named``."""
    parts = flat.split([t.numel() for t in named.values()])
    return {name: part.view_as(t) for (name, t), part in zip(named.items(), parts, strict=True)}


def _check(run, model, workers, folder, every):
    if (folder is None) != (every is None):
        fail("folder, every", (folder, every), "both, or neither")
    if every is not None:
        count("every", every)
    for layer in model.modules() if workers.size > 1 else ():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            fail("model", type(layer).__name__, "no BatchNorm on more than one worker: a norm of each example, "
                 "or SyncBatchNorm in a loop of your own")  # fmt: skip
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            fail("model", type(layer).__name__, "batchlab.models.Dropout, whose masks need no generator's state")
    smallest = min(batch_sizes(run))
    if smallest < workers.size:
        fail("batch_size", smallest, f"an example for each of {workers.size} workers in every batch, the last one too")


def _identity(run):
    """What of a run must be the same for a checkpoint to go on: all but where it computes."""
    text = {f.name: re.sub(r" at 0x\w+", "", repr(getattr(run, f.name))) for f in fields(run) if f.name not in FREE}
    return text | {"data": fingerprint(run.data)}


def _save(path, run, now, workers):
    """Worker 0 writes beside the checkpoint and renames, so that there is always a whole one."""
    if workers.rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"run": _identity(run), "now": now}, path.with_suffix(".new"))
        os.replace(path.with_suffix(".new"), path)


def _load(path, run, device):
    kept, want = torch.load(path, map_location=device, weights_only=True), _identity(run)
    for name, value in want.items():
        if kept["run"].get(name) != value:
            fail(f"checkpoint's {name}", kept["run"].get(name), f"{value}, or another folder than {path.parent}")
    return kept["now"]
