"""Sweeps: the same run for a grid of batch sizes, learning rates and seeds, as one tidy table.

The lanes of one batch size are trained together, in units of work that joblib hands to processes or to a cluster.
Whatever computes a lane, its numbers are those of ``fit`` with the same arguments, up to rounding.
"""

from dataclasses import replace
from itertools import islice

import joblib
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from batchlab._check import count, fail, number, one_of
from batchlab.engine import native, stacked, store
from batchlab.engine.plan import Lane, plan
from batchlab.training import models, step
from batchlab.training.loop import fit
from batchlab.training.run import Run

ENGINES = ("auto", "native", "compiled", "stacked", "loop")
LANES_OF_A_UNIT = 16  # for each thread: enough to keep threads busy, little to lose when a sweep is killed
STEPS_THAT_PAY_FOR_COMPILING = 20_000  # what benchmarks/sweep.py measures, for the case where least is won


def sweep(
    run,
    *,
    batch_size=None,
    lr=None,
    seed=range(10),
    n_jobs=None,
    cache=None,
    memory=2**30,
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
    n_jobs : joblib's: processes to use, by default one, or what ``joblib.parallel_config`` says. That is also the way
        to a cluster: ``with joblib.parallel_config("dask"): sweep(...)``. Cores are shared among processes.
    cache : a directory. Finished lanes are kept there, under a hash of everything that decides them (arguments, data,
        code), and found again by any later sweep: one that was killed goes on, one on a larger grid adds to it.
    memory : bytes that one stack may take; larger grids are cut into several stacks
    engine : what trains the lanes. "native": ReLU networks of linear layers under SGD, momentum or Nesterov, in
        float32 on a CPU, by a C kernel (tens to hundreds of times a DataLoader loop). "stacked": any model, as one
        model with a dimension of lanes (``torch.func.vmap``). "compiled": the same through ``torch.compile``.
        "loop": ``fit``, lane by lane. "auto" takes the first that suits, and "compiled" only for more than 20,000
        steps of a model without convolutions, where it pays for its own compilation. Without a C compiler there is
        one warning, and "stacked" in place of the first two.

    Raises ValueError on a bad argument, before anything is trained. Divergence is recorded, never raised.

    >>> from batchlab import Run, data, models, optim
    >>> run = Run(data=data.digits(), model=models.mlp((64, 32, 10)), optimizer=optim.momentum(0.9), lr=0.1,
    ...           batch_size=32, epochs=2, device="cpu")
    >>> table = sweep(run, batch_size=[32, 128], lr=[0.01, 0.1], seed=[0, 1])
    >>> table.groupby(["batch_size", "lr"]).val_accuracy.max().gt(0.8).to_dict()
    {(32, 0.01): True, (32, 0.1): True, (128, 0.01): False, (128, 0.1): True}
    """
    grid = _grid(run, batch_size, lr, seed)
    count("memory", memory)
    engine = _engine(run, one_of("engine", engine, ENGINES))
    folder = None if cache is None else store.opened(cache)
    names = store.names(grid, engine) if folder else []
    done = {i: lane for i, name in enumerate(names) if (lane := store.read(folder, name))}

    workers = joblib.effective_n_jobs(n_jobs)
    threads = max(1, joblib.cpu_count() // workers) if workers > 1 else torch.get_num_threads()
    units = _units(grid, engine, memory, threads)
    if engine == "native":  # its lanes are computed apart
        units = [[i for i in unit if i not in done] for unit in units]
    else:  # rounding may depend on who shares the stack, so a stack is trained again whole
        units = [unit for unit in units if not all(i in done for i in unit)]
    tasks = (joblib.delayed(_train)(i, *task) for i, task in enumerate(_tasks(grid, units, engine, threads, workers)))
    with tqdm(total=len(grid), initial=len(grid) - sum(map(len, units)), unit=" lanes", disable=not progress) as bar:
        for which, results in _as_they_come(tasks, n_jobs, workers):
            for i, lane in zip(units[which], results, strict=True):
                done[i] = lane
                if folder and not store.write(folder, names[i], lane):
                    folder = None
            bar.update(len(results))
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
    for size in sizes:
        step.prepare(replace(run, batch_size=size))  # for its checks
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


def _engine(run, engine):
    """The engine that will be used; ValueError where the one asked for cannot do what ``run`` asks."""
    stackable = run.precision != "float16" and run.checkpoint_segments == 1
    if engine in ("stacked", "compiled") and not stackable:
        fail("engine", engine, "'loop' or 'auto' for precision='float16' and for checkpoint_segments > 1")
    if engine == "native" and not native.suits(run):
        fail("engine", engine, "another one: see batchlab.engine.native.suits for what the C kernel computes")
    if engine == "auto" and native.suits(run) and native.library():
        return "native"
    return engine if engine != "auto" else "auto" if stackable else "loop"


def _units(grid, engine, memory, threads):
    """Lists of places in the grid: lanes of one batch size that are trained together."""
    units = []
    for size in dict.fromkeys(run.batch_size for run in grid):
        places = [i for i, run in enumerate(grid) if run.batch_size == size]
        if engine in ("native", "loop"):
            most = LANES_OF_A_UNIT * threads if engine == "native" else 1
        else:
            most = max(1, memory // stacked.bytes_of_a_lane(grid[places[0]]))
        units += [places[i : i + most] for i in range(0, len(places), most)]
    return units


def _tasks(grid, units, engine, threads, workers):
    """The arguments of ``_train`` for each unit, made when they are needed."""
    size, common = None, None
    for unit in units:
        runs = [grid[i] for i in unit]
        if unit and runs[0].batch_size != size:
            size, common = runs[0].batch_size, None if engine == "loop" else plan(runs[0])
        yield common, runs, engine, threads, workers > 1


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


def _train(which, common, runs, engine, threads, in_worker):
    """Train the lanes of one unit; runs in whatever process joblib chose."""
    if not runs:
        return which, []
    if in_worker:
        torch.set_num_threads(threads)
    if engine == "native" and native.library():
        return which, native.train(common, runs, threads)
    if engine == "loop":
        return which, [_one(run) for run in runs]
    wanted = engine == "compiled" or (engine == "auto" and _compiling_pays(runs[0], len(common.sizes)))
    can = step.device_of(runs[0]).type != "cpu" or native.library()  # torch.compile needs a compiler as well
    return which, stacked.train(common, runs, compiled=bool(wanted and can))


def _compiling_pays(run, steps):
    """Whether ``torch.compile`` wins back the half minute that it takes: in long runs, and never for convolutions."""
    if steps <= STEPS_THAT_PAY_FOR_COMPILING:
        return False
    return not any(isinstance(m, nn.modules.conv._ConvNd) for m in models.build(run.model, run.seed).modules())


def _one(run):
    history = fit(run)
    table = history.table.rename(columns={"lr": "step_lr", "batch_size": "step_batch_size"})
    return Lane(table.to_dict("records"), history.diverged, history.reached)


def _table(grid, done):

    rows = []
    for run, lane in zip(grid, done, strict=True):
        name = {"batch_size": run.batch_size, "lr": run.lr, "seed": run.seed}
        rows += [name | {"diverged": lane.diverged, "reached": lane.reached} | row for row in lane.rows]
    return pd.DataFrame(rows)
