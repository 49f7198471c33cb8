"""Does the noise scale, measured along a run, predict the critical batch size that counting steps gives?

Each problem is a task and a loss to reach. "steps": updates to that loss at five batch sizes, the rate tuned at each on
``CHOOSE`` and the steps counted on ``COUNT``. "noise k/8": B_simple of all training examples (of ``SAMPLE`` drawn at
random, where there are more) after k eighths of the mean steps of batches of 64, on ``WATCH``, seeds that count for
nothing else. The MNIST-1D problems and two of the digits take their steps and rates from 04-best-batch; least squares
is solved exactly (seed 0). No second occurs here. Some seven minutes on two idle cores.
"""

import functools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy, one_hot

import batchlab as bl
from batchlab.outcomes import best_lr, to_target

CHOOSE, COUNT, WATCH = range(1000, 1002), range(1004, 1016), range(1020, 1024)
SIZES = (4, 16, 64, 256, 1024)
EIGHTHS, AT, SAMPLE = 8, 64, 2000

# Of each network: task, optimizer, loss to reach; and, from trial runs on seeds 0 and 1, the guessed rate
# top (1 - exp(-B / bend)), where tuning begins, and the steps expected, few (1 + crit / B), which decide only how often
# to look (every 2 %) and when to give up (at three times).
NETWORKS = {
    "digits to 0.03": ("digits", "sgd", 0.03, 1.1, 26, 90, 55),
    "digits to 0.1, momentum": ("digits", "momentum", 0.1, 0.4, 130, 18, 80),
    "MNIST to 0.6": ("mnist", "sgd", 0.6, 0.35, 45, 15, 50),
    "MNIST to 0.3": ("mnist", "sgd", 0.3, 0.35, 45, 35, 60),
    "MNIST to 0.15": ("mnist", "sgd", 0.15, 0.35, 45, 89, 90),
    "MNIST to 0.3, momentum": ("mnist", "momentum", 0.3, 0.12, 180, 25, 75),
    "text to 2.9": ("text", "sgd", 2.9, 4.5, 28, 32, 58),
    "text to 2.6": ("text", "sgd", 2.6, 4.5, 28, 60, 60),
    "text to 2.3": ("text", "sgd", 2.3, 4.5, 28, 100, 80),
    "text to 2.6, momentum": ("text", "momentum", 2.6, 2.5, 325, 28, 160),
    "signals, 4,000 of them": ("signals-4000", "sgd", 1.2, 1.8, 90, 130, 130),
    "signals, 16,000 of them": ("signals-16000", "sgd", 1.2, 1.8, 90, 130, 130),
}
OF_CHAPTER_4 = {  # noise only
    "MNIST-1D to 1.5": ("mnist1d", "sgd"),
    "MNIST-1D to 1.0": ("mnist1d", "sgd"),
    "MNIST-1D to 0.5": ("mnist1d", "sgd"),
    "MNIST-1D to 1.0, momentum": ("mnist1d", "momentum"),
    "digits to 0.3": ("digits", "sgd"),
    "digits to 0.1": ("digits", "sgd"),
}
LEAST_SQUARES = {  # variance of the label noise, share of the first risk to reach; eigenvalues 1/i, weights of 1
    f"least squares{', label noise' * (noise > 0)} to {share}": (noise, share)
    for noise, shares in ((0.0, (0.1, 0.01, 0.001)), (1.0, (0.1, 0.03, 0.01)))
    for share in shares
}
LAYERS = {"digits": (64, 64, 10), "mnist": (784, 32, 10), "text": (288, 64, 96)}  # others: (40, 100, 100, 10)


def rows(seeds=COUNT, watch=WATCH, problems=(*NETWORKS, *OF_CHAPTER_4, *LEAST_SQUARES), sizes=SIZES, cache=None):
    """One row a problem, quantity, batch size and seed; "lr" is the rate, "value" what was found."""
    found = []
    for name in problems:
        if name in LEAST_SQUARES:
            found += least_squares(name, sizes)
            continue
        counted = steps(name, seeds, sizes, cache) if name in NETWORKS else earlier(name)
        found += counted if name in NETWORKS else []
        at = [row for row in counted if row["batch_size"] == AT]
        if at and not name.startswith("signals"):
            mean = np.mean([row["value"] for row in at])
            found += [row for seed in watch for row in noise(name, at[0]["lr"], round(mean), seed)]
    return pd.DataFrame(found)[["problem", "quantity", "batch_size", "lr", "seed", "value"]]


@functools.cache
def dataset(task):
    """The data of a task. Its validation part, where steps are counted, is of what is trained on, but for signals."""
    if task.startswith("signals"):
        return bl.data.mnist1d(int(task.split("-")[1]), val=1000)
    if task == "mnist1d":
        return bl.data.mnist1d(4000)
    data = {"digits": bl.data.digits, "mnist": bl.data.mnist5k, "text": three_letters}[task]()
    return replace(data, val=tuple(part[:1000] for part in data.train))


def three_letters(tokens=20_000):
    """Real text for a linear layer: x is the three letters before a letter, one-hot, y the letter. B is in tokens."""
    text = bl.data.documentation_text(4, tokens=4 * tokens, val=4000, test=4000)
    parts = [(one_hot(x[:, :3], 96).flatten(1).float(), y[:, 2]) for x, y in (text.train, text.val, text.test)]
    return replace(text, train=parts[0], val=parts[1], test=parts[2])


def steps(name, seeds, sizes, cache=None):
    task, optimizer, target, top, bend, few, crit = NETWORKS[name]
    data, counted = dataset(task), []
    for batch_size in sizes:
        expected = few * (1 + crit / batch_size)
        run = bl.Run(
            data=data,
            model=bl.models.mlp(LAYERS.get(task, (40, 100, 100, 10))),
            optimizer=getattr(bl.optim, optimizer)(),
            lr=1.0,
            batch_size=batch_size,
            device="cpu",
            target=("val_loss", target),
            evaluate=("val",),
            examples=math.ceil(3 * expected) * batch_size,
            evaluate_every=max(1, round(0.02 * expected)) * batch_size,
        )
        lr = tuned(run, top * (1 - math.exp(-batch_size / bend)), cache)
        table = to_target(bl.sweep(run, lr=[lr], seed=seeds, cache=cache), *run.target)
        counted += [
            dict(problem=name, quantity="steps", batch_size=batch_size, lr=lr, seed=seed, value=value)
            for seed, value in zip(table.seed, table.step, strict=True)
        ]
    return counted


def tuned(run, guess, cache=None):
    """The rate that reaches the target in the fewest steps, of rates a factor 1.5 apart that go on past it."""
    powers = list(range(-2, 3))
    while len(powers) < 15:
        lrs = [float(f"{guess * 1.5**k:.3g}") for k in powers]
        best = best_lr(to_target(bl.sweep(run, lr=lrs, seed=CHOOSE, cache=cache), *run.target), "step", edge="flag")
        if not best.at_edge[0]:
            return float(best.lr[0])
        powers = [powers[0] - 1, *powers] if best.lr[0] == lrs[0] else [*powers, powers[-1] + 1]
    raise ValueError(f"no best rate for {run.data.name} at {run.batch_size} in {lrs}")


def earlier(name):
    """The counts of chapter 4 at batches of 64, as rows."""
    table = bl.results.read("04-best-batch")
    here = table[(table.problem == name) & (table.batch_size == AT)]
    return [dict(batch_size=AT, lr=lr, value=value) for lr, value in zip(here.lr, here.steps, strict=True)]


def noise(name, lr, last, seed):
    """B_simple after k eighths of ``last`` steps of batches of 64."""
    task, optimizer = (NETWORKS | OF_CHAPTER_4)[name][:2]
    x, y = dataset(task).train
    model = bl.models.build(bl.models.mlp(LAYERS.get(task, (40, 100, 100, 10))), seed)
    rule = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9 * (optimizer == "momentum"))
    some = torch.from_numpy(np.random.default_rng(np.random.SeedSequence(seed)).permutation(len(x))[:SAMPLE])
    looks, found = {round(k * last / EIGHTHS): k for k in range(EIGHTHS + 1)}, []
    for step, index in enumerate(bl.data.index_stream(len(x), AT, seed=seed)):
        if step in looks:
            scale = bl.noise.noise_scale(model, cross_entropy, x[some], y[some], population=len(x), probes=4)
            quantity = f"noise {looks[step]}/{EIGHTHS}"
            value = scale.b_simple.estimate
            found.append(dict(problem=name, quantity=quantity, batch_size=AT, lr=lr, seed=seed, value=value))
        if step == last:
            return found
        rule.zero_grad()
        cross_entropy(model(x[index]), y[index]).backward()
        rule.step()
    raise ValueError("the stream of batches has ended")


def least_squares(name, sizes):
    label_variance, share = LEAST_SQUARES[name]
    h, w = 1 / np.arange(1, 51), np.ones(50)
    target = share * 0.5 * h.sum()
    found = []
    for batch_size in sizes:
        value, lr = bl.theory.least_squares.min_steps(h, batch_size, w, target, label_variance)
        found.append(dict(problem=name, quantity="steps", batch_size=batch_size, lr=lr, seed=0, value=value))
        if batch_size == AT:
            m, last, looks = w**2, math.ceil(value), []
            for _ in range(last + 1):  # the second moments of the error, theory.least_squares
                looks.append(bl.theory.least_squares.noise_scales(h, np.sqrt(m), label_variance)[0])
                m = (1 - lr * h) ** 2 * m + lr**2 / AT * (h**2 * m + h * (h @ m) + label_variance * h)
            found += [
                dict(problem=name, quantity=f"noise {k}/{EIGHTHS}", batch_size=AT, lr=lr, seed=0, value=scale)
                for k in range(EIGHTHS + 1)
                for scale in [looks[round(k * last / EIGHTHS)]]
            ]
    return found
