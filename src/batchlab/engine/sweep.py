"""Sweeps: the same run for a grid of batch sizes, learning rates and seeds, as one tidy table.

The lanes of one batch size are trained together, in units of work that joblib hands to processes or to a cluster.
Whatever computes a lane, its numbers are those of ``fit`` with the same arguments, up to rounding.
"""

import ctypes
import os
from dataclasses import replace
from itertools import islice
from multiprocessing import current_process
from threading import Thread
from threading import enumerate as running_threads
from time import sleep

import joblib
import pandas as pd
import torch
from tqdm import tqdm

from batchlab._check import count, fail, number, one_of
from batchlab.engine import choice, native, stacked, store
from batchlab.engine.plan import Lane, in_lane, plan
from batchlab.training.check import check
from batchlab.training.loop import fit
from batchlab.training.run import Run

WATCH = "batchlab: is the sweep still there?"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>


def sweep(
    run,
    *,
    batch_size=None,
    lr=None,
    seed=range(10),
    n_jobs=None,
    cache=None,
    memory=None,
    engine="auto",
    progress=False,
):
    """Train ``run`` for every batch size, learning rate and seed; return a pandas.DataFrame.

    One row a lane and evaluation. ``batch_size``, ``lr`` and ``seed`` name the lane; ``diverged`` and ``reached`` say
    how it ended; the other columns are those of ``History.table``, with ``step_lr`` and ``step_batch_size`` for what
    the schedules made of lr and batch size in the last step. ``seconds`` are of training on one thread ("native"), or
    the lane's share of its stack's: good to compare batch sizes within a table, no measure of a lone run.

    batch_size, lr, seed : lists without duplicates; by default those of ``run``, and seeds 0 to 9. ``lr`` may be a
        function of the batch size that returns such a list.
    n_jobs : joblib's: processes to use. By default, where the work for the CPU is long enough to pay for starting them,
        one for each of torch's threads, and each process then has one thread; else this process alone. They end with
        it. ``joblib.parallel_config`` has its say too, and is the way to a cluster:
        ``with joblib.parallel_config("dask"): sweep(...)``. Cores are shared among processes. Dask starts a worker that
        died again; Ray does so with ``ray_remote_args={"max_restarts": -1, "max_task_retries": -1}``.
    cache : a directory. Finished lanes are kept there, under a hash of everything that decides them (arguments and
        their code, data, versions, this package's code, the engine), and found again by any later sweep: one that was
        killed goes on, one on a larger grid adds to it. A function or class of your own is followed into its body,
        closure and the globals it uses; what cannot be followed is trained and not kept, and a warning says why. The
        folder may be shared; whoever can write to it can plant results.
    memory : bytes that the stacks trained at one time may take, by default 1 GiB, on a GPU half of what is free
    engine : what trains the lanes. "native": a C kernel, on a CPU, for networks of ``models`` and their like (see
        ``engine.native.suits``; up to hundreds of times a DataLoader loop). "stacked": several lanes as one model
        with a dimension of lanes (``torch.func.vmap``), replayed on a GPU. "compiled": the same through
        ``torch.compile``. "loop": ``fit``, lane by lane, any model. "auto" decides for each batch size by what a step
        costs, see ``engine.choice``; with a cache its decision is kept, and taken again when the sweep goes on.
        Without a C compiler there is one warning, and another engine in place of "native" and "compiled".

    Raises ValueError on a bad argument, before anything is trained. Divergence is recorded, never raised.

    >>> from batchlab import Run, data, models, optim
    >>> run = Run(data=data.digits(), model=models.mlp((64, 32, 10)), optimizer=optim.momentum(0.9), lr=0.1,
    ...           batch_size=32, epochs=2, device="cpu")
    >>> table = sweep(run, batch_size=[32, 128], lr=[0.01, 0.1], seed=[0, 1])
    >>> table.groupby(["batch_size", "lr"]).val_accuracy.max().gt(0.8).to_dict()
    {(32, 0.01): True, (32, 0.1): True, (128, 0.01): False, (128, 0.1): True}
    """
    grid = _grid(run, batch_size, lr, seed)
    one_of("engine", engine, ("auto", *store.ENGINES))
    workers, threads = joblib.effective_n_jobs(n_jobs), torch.get_num_threads()
    unsaid = workers == 1 and n_jobs is None
    cores = joblib.effective_n_jobs(threads) if unsaid else workers
    memory = (choice.memory(run) if memory is None else count("memory", memory)) // cores
    kept = None if cache is None else store.Store(cache, grid)
    by_size = {size: [r for r in grid if r.batch_size == size] for size in dict.fromkeys(r.batch_size for r in grid)}
    plans = {size: plan(runs[0]) for size, runs in by_size.items()}
    choices = {size: _choice(engine, runs, plans[size], cores, memory, kept) for size, runs in by_size.items()}
    found = kept.read(grid, [choices[r.batch_size].engine for r in grid]) if kept else []
    done = {i: lane for i, lane in enumerate(found) if lane}

    units = _units(grid, choices, done)
    if workers > 1:
        threads = max(1, joblib.cpu_count() // workers)
    elif unsaid and sum(choices[grid[i].batch_size].seconds for unit in units for i in unit) > choice.WORKERS_PAY:
        workers, n_jobs, threads = cores, cores, 1
    parent = os.getpid() if workers > 1 else None
    tasks = (
        joblib.delayed(_train)(i, plans[size], [grid[j] for j in unit], choices[size].engine, threads, parent)
        for i, unit in enumerate(units)
        for size in [grid[unit[0]].batch_size]
    )
    with tqdm(total=len(grid), initial=len(grid) - sum(map(len, units)), unit=" lanes", disable=not progress) as bar:
        for which, trained_by, lanes in _as_they_come(tasks, n_jobs, workers):
            for i, lane in zip(units[which], lanes, strict=True):
                done[i] = lane
                if kept:
                    kept.write(grid[i], trained_by, lane)
            bar.update(len(lanes))
    return _table(grid, [done[i] for i in range(len(grid))])


def _grid(run, batch_size, lr, seed):
    """The lanes as a list of runs, batch size by batch size and learning rate by learning rate."""
    if not isinstance(run, Run):
        fail("run", type(run).__name__, "a batchlab.Run")
    sizes = [run.batch_size] if batch_size is None else _values("batch_size", batch_size, count)
    seeds = _values("seed", seed, lambda name, value: count(name, value, at_least=0))
    grid = []
    for size in sizes:
        rates = [run.lr] if lr is None else lr(size) if callable(lr) else lr
        for rate in _values("lr", rates, lambda name, value: number(name, value, above=0)):
            grid += [replace(run, batch_size=size, lr=rate, seed=s, progress=False) for s in seeds]
    model = None
    for size in sizes:
        model = check(replace(run, batch_size=size), model)
    return grid


def _values(name, values, check):
    """A non-empty list without duplicates, each value checked."""
    if isinstance(values, (str, bytes, dict)) or not hasattr(values, "__iter__"):
        fail(name, values, "a list of values")
    values = [check(name, value) for value in values]
    if not values:
        fail(name, values, "at least one value")
    if len(set(values)) < len(values):
        fail(name, values, "values without duplicates")
    return values


def _choice(engine, runs, plan, cores, memory, kept):
    """What trains the lanes of one batch size: as the sweep that is continued decided, or else decided now."""
    asked = engine
    if engine == "auto" and kept:
        asked = kept.read_choice(runs[0]) or "auto"
    chosen = choice.choose(runs[0], asked, len(runs), len(plan.sizes), cores, memory)
    if engine == "auto" and kept:
        kept.write_choice(runs[0], chosen.engine)
    return chosen


def _units(grid, choices, done):
    """Lists of places in the grid, of one batch size each: the lanes that are still to be trained, together."""
    units = []
    for size, chosen in choices.items():
        places = [i for i, run in enumerate(grid) if run.batch_size == size]
        if chosen.engine in ("native", "loop"):  # lanes are computed apart
            places = [i for i in places if i not in done]
        cut = [places[i : i + chosen.together] for i in range(0, len(places), chosen.together)]
        # rounding may depend on who shares the stack, so a stack is trained again whole
        units += [unit for unit in cut if not all(i in done for i in unit)]
    return units


def _as_they_come(tasks, n_jobs, workers):
    """The results of joblib's tasks, in any order, so that each can be kept as soon as it is there."""
    try:
        jobs = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered")
    except ValueError:  # Ray's backend returns lists only: give it a few tasks at a time
        jobs, tasks = joblib.Parallel(n_jobs=n_jobs), iter(tasks)
        while some := list(islice(tasks, 4 * workers)):
            yield from jobs(some)
    else:
        yield from jobs(tasks)


def _train(which, common, runs, engine, threads, parent):
    """Train the lanes of one unit, in whatever process joblib chose; also returns the engine that did it."""
    if parent is not None:
        torch.set_num_threads(threads)
        _settle(parent)
    if engine == "native" and native.library():
        return which, engine, native.train(common, runs, threads)
    if engine == "loop":
        return which, engine, [_one(run) for run in runs]
    if engine == "compiled" and choice.can_compile(runs[0]):
        return which, engine, stacked.train(common, runs, compiled=True)
    return which, "stacked", stacked.train(common, runs)  # also on a cluster's machine without a compiler


def _settle(parent):
    """Once in a worker that the sweep started itself; a cluster's workers are their owner's to set up.

    The worker ends when the process that started it does, however that ends: left alone, it would finish its lane and
    wait for another. And it keeps the memory that it frees.
    """

    def watch():
        while os.getppid() == parent:
            sleep(0.5)
        os._exit(1)

    # who started it is asked of multiprocessing: the system forgets a parent that has ended already
    ours = getattr(current_process(), "_parent_pid", None) == parent
    if ours and WATCH not in {thread.name for thread in running_threads()}:
        Thread(target=watch, name=WATCH, daemon=True).start()
        _keep_freed_memory()


def _keep_freed_memory():
    """Have this process keep what it frees for the next step, where the C library is GNU's.

    By default that gives large tensors back to the system, unless something happens to lie above them, and every 4 kB
    of the next step's is a page fault: 10,500 a step, and half its time, for a CNN on images in batches of 256.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    # in bytes; before glibc 2.35 more than 32 MiB is refused, and trimming alone would make it worse
    if mallopt and (mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_THRESHOLD, 2**25)):
        mallopt(M_TRIM_THRESHOLD, 2**30)


def _one(run):
    history = fit(run)
    return Lane([in_lane(row) for row in history.table.to_dict("records")], history.diverged, history.reached)


def _table(grid, done):
    rows = []
    for run, lane in zip(grid, done, strict=True):
        name = {"batch_size": run.batch_size, "lr": run.lr, "seed": run.seed}
        rows += [name | {"diverged": lane.diverged, "reached": lane.reached} | row for row in lane.rows]
    return pd.DataFrame(rows)
