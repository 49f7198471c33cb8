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
from batchlab.engine import kernel, native, stacked, store
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
    cache : a directory. Finished lanes are kept there, under a hash of everything that decides them (arguments and
        their code, data, versions, this package's code, the engine), and found again by any later sweep: one that was
        killed goes on, one on a larger grid adds to it. A function or class of your own is followed into its body,
        closure and the globals it uses; what cannot be followed is trained and not kept, and a warning says why. The
        folder may be shared; whoever can write to it can plant results.
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
    >>> table.groupby(["batch_size", "lr"]).val_accuracy.max().round(1).to_dict()
    {(32, 0.01): 0.9, (32, 0.1): 1.0, (128, 0.01): 0.6, (128, 0.1): 0.9}
    """
    grid = _grid(run, batch_size, lr, seed)
    count("memory", memory)
    engines = _engines(grid, one_of("engine", engine, ENGINES))
    kept = None if cache is None else store.Store(cache, grid)
    found = kept.read(grid, [engines[run.batch_size] for run in grid]) if kept else []
    done = {i: lane for i, lane in enumerate(found) if lane}

    workers = joblib.effective_n_jobs(n_jobs)
    threads = max(1, joblib.cpu_count() // workers) if workers > 1 else torch.get_num_threads()
    units = [_left(engine, unit, done) for engine, unit in _units(grid, engines, memory, threads)]
    tasks = (joblib.delayed(_train)(i, *task) for i, task in enumerate(_tasks(grid, units, engines, threads, workers)))
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


def _engines(grid, engine):
    """What will train each batch size: a dict. ValueError where the engine asked for cannot do what the runs ask."""
    return {size: _engine(run, engine) for size, run in {run.batch_size: run for run in grid}.items()}


def _engine(run, engine):
    """The engine that will train ``run``, which a lane's key names: "auto" and a missing compiler are settled here."""
    stackable = run.precision != "float16" and run.checkpoint_segments == 1
    if engine in ("stacked", "compiled") and not stackable:
        fail("engine", engine, "'loop' or 'auto' for precision='float16' and for checkpoint_segments > 1")
    suits = native.suits(run)
    if engine == "native" and not suits:
        fail("engine", engine, "another one: see batchlab.engine.native.suits for what the C kernel computes")
    if engine in ("auto", "native") and suits and native.library():
        return "native"
    if engine == "loop" or not stackable:
        return "loop"
    if engine == "compiled" or (engine == "auto" and _compiling_pays(run)):
        return "compiled" if _can_compile(run) else "stacked"
    return "stacked"


def _compiling_pays(run):
    """Whether ``torch.compile`` wins back the half minute that it takes: in long runs, and never for convolutions."""
    order = "replacement" if run.order == "replacement" else "fixed"
    if next(islice(step.batches(run, order=order), STEPS_THAT_PAY_FOR_COMPILING, None), None) is None:
        return False
    return not any(isinstance(m, nn.modules.conv._ConvNd) for m in models.build(run.model, run.seed).modules())


def _can_compile(run):
    """Whether ``torch.compile`` finds what it needs: a compiler, and a folder to load what it makes from."""
    return bool(step.device_of(run).type != "cpu" or native.library()) and kernel.keep_torch_apart()


def _units(grid, engines, memory, threads):
    """Pairs (engine, places in the grid): lanes of one batch size that are trained together."""
    units = []
    for size in dict.fromkeys(run.batch_size for run in grid):
        places = [i for i, run in enumerate(grid) if run.batch_size == size]
        if engines[size] in ("native", "loop"):
            most = LANES_OF_A_UNIT * threads if engines[size] == "native" else 1
        else:
            most = max(1, memory // stacked.bytes_of_a_lane(grid[places[0]]))
        units += [(engines[size], places[i : i + most]) for i in range(0, len(places), most)]
    return units


def _left(engine, unit, done):
    """What is to train of a unit of which some lanes are done."""
    if engine == "native":  # its lanes are computed apart
        return [i for i in unit if i not in done]
    return [] if all(i in done for i in unit) else unit  # rounding may depend on who shares the stack: again whole


def _tasks(grid, units, engines, threads, workers):
    """The arguments of ``_train`` for each unit, made when they are needed."""
    size, common, engine = None, None, None
    for unit in units:
        runs = [grid[i] for i in unit]
        if unit and runs[0].batch_size != size:
            size, engine = runs[0].batch_size, engines[runs[0].batch_size]
            common = None if engine == "loop" else plan(runs[0])
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
    """Train the lanes of one unit, in whatever process joblib chose; also returns the engine that did it."""
    if not runs:
        return which, engine, []
    if in_worker:
        torch.set_num_threads(threads)
    if engine == "native" and native.library():
        return which, engine, native.train(common, runs, threads)
    if engine == "loop":
        return which, engine, [_one(run) for run in runs]
    if engine == "compiled" and _can_compile(runs[0]):
        return which, engine, stacked.train(common, runs, compiled=True)
    return which, "stacked", stacked.train(common, runs)  # also on a cluster's machine without a compiler


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
