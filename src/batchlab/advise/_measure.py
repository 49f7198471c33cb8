"""All measurements of a problem, one after another, within a number of seconds, and nothing changed afterwards."""

import warnings
from dataclasses import replace
from functools import partial

import torch

from batchlab._check import fail
from batchlab.advise._branches import branches
from batchlab.advise._cost import step_seconds
from batchlab.advise._decide import decide, settings_at
from batchlab.advise._machine import ROUNDS, half_of_memory, largest_that_fits, loading, time_steps
from batchlab.advise._measured import Measured
from batchlab.advise._runs import whole_runs
from batchlab.advise._signal import leaves, rate_range, short_run
from batchlab.advise._steps import batch_norms, dropouts, kind_of_loss, refuse_bare_statistics, tried
from batchlab.instruments._probe import check_model, preserved
from batchlab.problem._generators import generators_kept

# Of the seconds, the share that is gone when a part must end; what a part leaves over is for the next.
ENDS = {
    "data": 0.1, "memory": 0.25, "step time": 0.4, "loading": 0.45, "noise": 0.65, "rates": 0.75, "whole runs": 0.95,
    "branches": 1.0,
}  # fmt: skip
EXAMPLES = 8192  # the pool
HALVED = 6  # times at most, an advised rate with which the loss left
STEPS = 200  # of the short run, where nobody says how long the run will be
RULES = {
    torch.optim.SGD: "sgd",
    torch.optim.Adam: "adam",
    torch.optim.AdamW: "adamw",
    torch.optim.NAdam: "adam",
    torch.optim.RAdam: "adam",
    torch.optim.RMSprop: "adam",
}
UNSEEN = (
    ("generalisation", "all of this is about time to a training loss; how well the model does on other data, it does "
     "not say"),
    ("later in the run", "the noise scale grows as the loss falls: measure again from a later checkpoint"),
)  # fmt: skip


def settings_of(optimizer):
    """(family, one dict of settings a parameter group) of a torch optimizer, as ``rescale`` takes them."""
    kind = next((name for rule, name in RULES.items() if type(optimizer) is rule), "other")
    groups = []
    for group in optimizer.param_groups:
        found = {"lr": float(group["lr"]), "weight_decay": float(group.get("weight_decay", 0.0))}
        if kind == "sgd":
            found["momentum"] = float(group.get("momentum", 0.0))
        elif "betas" in group and kind != "other":
            found |= {"beta1": float(group["betas"][0]), "beta2": float(group["betas"][1]), "eps": float(group["eps"])}
        elif isinstance(optimizer, torch.optim.RMSprop):
            found |= {"beta2": float(group["alpha"]), "eps": float(group["eps"])}
        groups.append({name: value for name, value in found.items() if value or name in ("lr", "beta1")})
    if kind == "sgd" and any("momentum" in group for group in groups):
        kind = "momentum"
    if min(group["lr"] for group in groups) <= 0:
        fail("optimizer.lr", min(group["lr"] for group in groups), "a rate above 0: after warm-up, say")
    return kind, tuple(groups)


def measure(problem, *, seconds, memory, most, examples, steps, branch, seed, clock, say):
    """A ``Measured`` of ``problem``: see ``advise``, whose arguments these are. ``say(part, share)`` is told of
    progress.

    Only what ended in time is in it. The model, its gradients and mode, the optimizer and all random generators are
    afterwards what they were, bit for bit, also where an error or Ctrl-C ends it.
    """
    begin = clock()
    check_model(problem.model, problem.loss)
    refuse_bare_statistics(problem.model)
    family, settings = settings_of(problem.optimizer)
    notes, left = [], {part: partial(_left, clock, begin + share * seconds) for part, share in ENDS.items()}
    # Whatever runs the model does so inside ``preserved``.
    with generators_kept(problem.data, seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the user's model, of which one said is one said sixty times

        def tell(part):
            say(part, min((clock() - begin) / seconds, 1.0))

        tell("data")
        pool = problem.pool(EXAMPLES, seed, left["data"])
        notes += _about(problem, pool)
        with preserved(problem.model, problem.optimizer):
            tried(problem, problem.sent(pool.batch(min(max(problem.batch_size, 2), pool.size, 64))))
            kind = kind_of_loss(problem, pool)
        notes += OF_LOSS[kind]
        found = Measured(problem.batch_size, family, settings, pool.population, most, fresh=not problem.optimizer.state)

        def over(part):
            tell(part)
            if left[part]() > 0:
                return False
            notes.append((part, "not measured: the time was over"))
            return True

        tell("memory")
        limit = min(most or 2**16, pool.population or 2**16)
        if memory is None and problem.device.type == "cpu":
            memory = half_of_memory()
            if memory is None:
                fail("memory", None, "a number of bytes: this system does not say how much is free")
            notes.append(("memory", f"no cap was stated: half of what was free, {memory / 2**20:,.0f} MiB, was taken"))
        dear = (ENDS["step time"] - ENDS["memory"]) * seconds / ROUNDS  # a step that takes longer could not be timed
        fit = longest = largest_that_fits(problem, pool, memory, limit, left["memory"], dear, longest=True)
        if pool.lengths is not None and longest.ended == "memory":
            fit = largest_that_fits(problem, pool, memory, limit, left["memory"], dear, start=longest.largest)
        found = replace(
            found, largest=fit.largest, largest_longest=longest.largest, memory=memory,
            bounded=longest.ended != "memory" and fit.ended != "memory",
        )  # fmt: skip
        if "time" in (fit.ended, longest.ended):
            notes.append(("memory", f"more than {fit.largest:,} examples were not tried for want of time; a line "
                          f"through the bytes of smaller batches meets the cap at about {fit.safe:,}"))  # fmt: skip
        tell("step time")
        timed = time_steps(problem, pool, min(fit.safe, longest.safe), fit.seconds, left["step time"], seed, clock)
        found = replace(found, timings=tuple((t.batch_size, t.seconds) for t in timed.timings))
        if not all(t.tight for t in timed.timings):
            notes.append(("step time", "timed less exactly than 3 %: another program, or too little time"))
        if not over("loading"):
            *load, overlapped = loading(problem, pool, left["loading"])
            found = replace(found, load=tuple(load), overlapped=overlapped)
        if not over("noise"):
            with preserved(problem.model, problem.optimizer):
                looks, layers, more = short_run(problem, pool, steps or length_of_run(problem, pool, examples),
                                                left["noise"], seed, kind == "mean")  # fmt: skip
            notes += more
            found = replace(found, looks=looks, layers=layers)
        advice = decide(found)
        if not over("rates"):
            found = replace(found, ranges=_ranges(problem, pool, advice, longest.safe, left["rates"], seed))
            found = replace(found, left=_left_loss(problem, pool, found, left["rates"], seed))
        if examples is not None and kind == "mean" and family != "other" and not over("whole runs"):
            largest = min(longest.safe, pool.size // 2)
            runs, more = whole_runs(problem, pool, examples, step_seconds(found), partial(_rate, found),
                                    advice.batch_size, largest, left["whole runs"], seed)  # fmt: skip
            found, notes = replace(found, runs=runs), notes + more
        if branch and family == "other":
            notes.append(("branches", "not tried: how this optimizer's rate moves is not known"))
        elif branch and not over("branches"):
            found = replace(found, branches=_branch(problem, pool, found, left["branches"], steps or STEPS, seed))
            if not found.branches:
                notes.append(("branches", "not measured: the time was over"))
        say("done", 1.0)
    return replace(found, notes=(*notes, *UNSEEN))


def length_of_run(problem, pool, examples):
    """The steps of the first half of a run of ``examples``, for which ``CRITICAL`` was read off; of so many passes over
    the pool if it is smaller than the training set, since what is seen more often is fitted sooner."""
    if examples is None:
        return STEPS
    share = 1 if pool.population is None else min(pool.size / pool.population, 1)
    return max(8, round(share * examples / 2 / problem.batch_size))


def _left(clock, end):
    return end - clock()


OF_LOSS = {
    "mean": [],
    "weighted": [("loss", "a weighted mean, over tokens or with class weights: some examples weigh more; taken as a "
                  "mean over examples, in which batch sizes are counted")],
    "random": [("loss", "random even in evaluation mode: whether it is a mean over examples could not be tried")],
}  # fmt: skip


def _about(problem, pool):
    notes = []
    if batch_norms(problem.model):
        notes.append(("batch normalisation", "its own noise changes with the batch (the micro-batch, if accumulated), "
                      "which no noise scale knows: confirm by training"))  # fmt: skip
    if dropouts(problem.model):
        notes.append(
            ("dropout", "gradients of single examples are taken without it, the short run and the steps with it")
        )
    if pool.taken:
        notes.append(("data", f"an iterator: the {pool.taken} batches that were taken from it are gone"))
    if pool.lengths is not None:
        notes.append(("data", f"examples hold from {pool.lengths.min():,} to {pool.lengths.max():,} numbers: what fits "
                      "was tried on the longest too"))  # fmt: skip
    if problem.device.type == "mps":
        notes.append(("MPS", "the same program, but never verified on such a device"))
    if type(problem.optimizer) not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        notes.append(("optimizer", f"{type(problem.optimizer).__name__}: the factor from noise scale to critical batch "
                      "was measured for SGD and Adam only"))  # fmt: skip
    return notes


def _ranges(problem, pool, advice, fits, left, seed):
    found = []
    for size in dict.fromkeys(min(size, fits) for size in (problem.batch_size, advice.batch_size)):
        with preserved(problem.model, problem.optimizer):
            made = rate_range(problem, pool, size, left, seed)
        found += [made] if made else []
    return tuple(found)


def _rate(found, size):
    """The first group's rate that goes with ``size``, as far as is known."""
    advice = decide(found)
    return settings_at(found, size, None if advice.noise is None else advice.critical.estimate)[0][0].settings["lr"]


def _left_loss(problem, pool, found, left, seed):
    """(size, rate) pairs with which a short run at the advised size left its loss: the advised rate, and half of it as
    often as that does too."""
    lost = ()
    for _ in range(HALVED if found.family != "other" else 0):
        size = decide(found).batch_size
        rate = _rate(found, size)
        if left() <= 0 or size > pool.size:
            break
        with preserved(problem.model, problem.optimizer):
            if not leaves(problem, pool, size, rate, left, seed):
                break
        lost = (*lost, (size, rate))
        found = replace(found, left=lost)
    return lost


def _branch(problem, pool, found, left, steps, seed):
    """The branches of a problem: with its advised size, and with twice and four times its own."""
    own = problem.batch_size
    sizes = sorted({decide(found).batch_size, own * 2, own * 4} - {own})
    rates = {size: _rate(found, size) for size in sizes}
    return branches(problem, pool, sizes, rates, steps * own, left, seed)
