"""Does the domain decide the useful batch size? Two tasks in each of five domains, all measured alike.

A task is data, a network and a loss. "steps": updates to a held-out loss at four batch sizes, the rate tuned at each on
``CHOOSE``, counted on ``COUNT``, infinite where a run fails; "noise k/4": the noise scale of the training set after k
quarters of the median steps of batches of 64, on ``WATCH``. The loss to reach is placed alike in every task: of what
trial runs (seeds 0 and 1) took off the loss of the best constant answer, four fifths. "small", "large TE", "large TS":
losses after training at B = 16, and at B = 128 for as many examples and for as many steps, four passes at B = 16 over
at most 4,000 examples, the rate falling along half a cosine, on ``QUALITY``. Plain SGD throughout. Real: images,
language, and one task of speech, which needs aeon's data. The rest is made up. For speech also the steps on a quarter
of the utterances, with a narrow and a wide network, and to a lower loss. Some three minutes on two idle cores.
"""

import functools
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, cross_entropy, mse_loss, one_hot

import batchlab as bl
from batchlab.outcomes import ends, to_target

CHOOSE, COUNT, WATCH, QUALITY = range(1300, 1304), range(1304, 1316), range(1320, 1324), range(1340, 1352)
SIZES, AT, LOOKS, SAMPLE = (4, 16, 64, 256), 64, 4, 2000
SMALL, LARGE, PASSES, MOST = 16, 128, 4, 4000
PARTS = ("train", "val", "test")

# Of each task: data, layers of a network, the loss to reach; and, from the trials, the guessed rate
# top (1 - exp(-B / bend)), where tuning begins, the steps expected, few (1 + crit / B), which decide only how often to
# look and when to give up, and the best rates of the three arms of quality as powers of two.
TASKS = {
    "MNIST": ("small_mnist", (196, 32, 10), 0.61, 0.5, 45, 20, 35, (-4, -2, -3)),
    "digits": ("digits", (64, 64, 10), 0.52, 0.35, 45, 15, 20, (-4, -2, -3)),
    "next letter": ("letters", (288, 64, 96), 2.37, 3, 28, 200, 70, (-1, 1, 1)),
    "topic": ("topics", (500, 32, 10), 1.32, 1.4, 30, 40, 35, (-2, 0, -1)),
    "speaker": ("speakers", (84, 64, 9), 0.57, 1.1, 30, 8, 30, (-4, -2, -3)),
    "vowel": ("formants", (40, 64, 10), 0.78, 0.8, 45, 25, 45, (-4, -2, -3)),
    "rating": ("ratings", "factors", 0.74, 2, 70, 150, 30, (-1, 1, 0)),
    "click": ("clicks", (180, 32, 2), 0.558, 1.3, 20, 100, 50, (-2, 1, 0)),
    "default": ("defaults", (20, 32, 2), 0.144, 1, 45, 60, 60, (-4, -2, -3)),
    "fraud": ("frauds", (30, 32, 2), 0.025, 2, 45, 100, 100, (-2, 0, -1)),
    "speaker, lower": ("speakers", (84, 64, 9), 0.36, 1.1, 30, 15, 50, ()),
    "speaker, lowest": ("speakers", (84, 64, 9), 0.25, 1.1, 30, 30, 60, ()),
    "speaker, few": ("few_speakers", (84, 64, 9), 0.36, 1.1, 30, 15, 60, ()),
    "speaker, narrow": ("speakers", (84, 16, 9), 0.36, 1.1, 30, 25, 50, ()),
    "speaker, wide": ("speakers", (84, 256, 9), 0.36, 0.9, 30, 15, 50, ()),
}
DOMAINS = {
    "images": ("MNIST", "digits"),
    "language": ("next letter", "topic"),
    "speech": ("speaker", "vowel"),
    "recommendation": ("rating", "click"),
    "risk": ("default", "fraud"),
}


# --- Data: real, then made up ---


def small_mnist():
    """Real digits, each 2 x 2 pixels averaged: 196 inputs."""
    return changed(bl.data.mnist5k(images=True), lambda x: avg_pool2d(x, 2).flatten(1))


def digits():
    return bl.data.digits(val=297, test=500)


def letters(tokens=20_000):
    """Real text: x is the three letters before a letter, one-hot, y the letter."""
    data = bl.data.documentation_text(4, tokens=4 * tokens, val=4000, test=8000)
    data = changed(data, lambda x: one_hot(x[:, :3], 96).flatten(1).float())
    return replace(data, **{part: (getattr(data, part)[0], getattr(data, part)[1][:, 2]) for part in PARTS})


def changed(data, function):
    return replace(data, **{part: (function(getattr(data, part)[0]), getattr(data, part)[1]) for part in PARTS})


def topics():
    return bl.data.documentation_topics()


def speakers():
    return bl.data.japanese_vowels()


def few_speakers():
    """A quarter of the training utterances: 110 of 440."""
    utterances = 640 - 110 - 100
    return replace(bl.data.japanese_vowels(val=utterances), val=speakers().val)


def made(name, x, y, classes=None, truth=None):
    """The last 5,000 examples are held out."""
    x, y = torch.tensor(x), torch.tensor(y)
    if x.dtype == torch.float64:
        x = ((x - x[:-5000].mean(0)) / x[:-5000].std(0)).float()
    train, val, test = (slice(None, -5000), slice(-5000, -4000), slice(-4000, None))
    parts = {part: (x[i], y[i]) for part, i in zip(PARTS, (train, val, test), strict=True)}
    return bl.data.Dataset(name, False, **parts, classes=classes, truth=truth)


FORMANTS = {  # hertz, means of men: Peterson and Barney 1952
    "heed": (270, 2290, 3010), "hid": (390, 1990, 2550), "head": (530, 1840, 2480), "had": (660, 1720, 2410),
    "hod": (730, 1090, 2440), "hawed": (570, 840, 2410), "hood": (440, 1020, 2240), "whod": (300, 870, 2240),
    "hud": (640, 1190, 2390), "heard": (490, 1350, 1690),
}  # fmt: skip


def formants(examples=4000):
    """Which of ten vowels? A spectrum at 40 frequencies, in decibels: three resonances, moved by the length of the
    vocal tract (15 %) and each by 5 %, and noise of 6 dB."""
    rng, n = np.random.default_rng(1301), examples + 5000
    y = rng.integers(10, size=n)
    moved = np.exp(0.15 * rng.standard_normal((n, 1)) + 0.05 * rng.standard_normal((n, 3)))
    centre = (np.array(list(FORMANTS.values()))[y] * moved)[:, None]  # (n, 1, 3)
    at = np.linspace(100, 4000, 40)[:, None]
    gain = centre**2 / np.hypot(centre**2 - at**2, at * (50 + centre / 20))
    return made("formants", 20 * np.log10(gain.prod(2)) + 6 * rng.standard_normal((n, 40)), y, 10)


def tastes(rng, n, users=100, items=80, rank=4):
    """Who saw what, and how much they should like it: a table of this rank, variance 2."""
    who, what = rng.integers(users, size=n), rng.integers(items, size=n)
    u, v = rng.standard_normal((users, rank)), rng.standard_normal((items, rank)) / rank**0.5
    return who, what, rng.standard_normal(users)[who] + (u[who] * v[what]).sum(1)


def ratings(examples=4000):
    """x: numbers of user and item; y: the taste and noise of variance 1/4. ``truth``: the tastes of the test part."""
    rng = np.random.default_rng(1302)
    who, what, liking = tastes(rng, examples + 5000)
    y = (liking + 0.5 * rng.standard_normal(len(liking)))[:, None].astype(np.float32)
    return made("ratings", np.stack([who, what], 1), y, truth=torch.tensor(liking[-4000:]))


def clicks(examples=4000):
    """x: user and item, one-hot side by side; y: whether they clicked. ``truth``: the chances of the test part."""
    rng = np.random.default_rng(1303)
    who, what, liking = tastes(rng, examples + 5000)
    chance = 1 / (1 + np.exp(-2 * liking + 1))
    x = np.concatenate([np.eye(100, dtype=np.float32)[who], np.eye(80, dtype=np.float32)[what]], 1)
    return made("clicks", x, (rng.random(len(x)) < chance).astype(int), 2, torch.tensor(chance[-4000:]))


def defaults(examples=8000):
    """One loan in fourteen fails: 20 correlated, skewed columns; the log odds linear, and two products."""
    rng, n = np.random.default_rng(1304), examples + 5000
    z = rng.standard_normal((n, 5)) @ rng.standard_normal((5, 20)) + 2 * rng.standard_normal((n, 20))
    x = np.sinh(z / 3)
    odds = z[:, :10] @ rng.standard_normal(10) / 5 + z[:, 0] * z[:, 1] / 6 - z[:, 2] * z[:, 3] / 6 - 5.6
    chance = 1 / (1 + np.exp(-odds))
    return made("defaults", x, (rng.random(n) < chance).astype(int), 2, torch.tensor(chance[-4000:]))


def frauds(examples=12_000):
    """One payment in fifty is a fraud, of one of three kinds: each a small cloud among 30 columns of ordinary ones."""
    rng, n = np.random.default_rng(1305), examples + 5000
    y = (rng.random(n) < 0.02).astype(int)
    kinds = 1.2 * rng.standard_normal((3, 30)) * (rng.random((3, 30)) < 0.4)
    x = np.where(y[:, None], kinds[rng.integers(3, size=n)] + 0.7 * rng.standard_normal((n, 30)), 0)
    return made("frauds", np.where(y[:, None], x, rng.standard_normal((n, 30))), y, 2)


# --- Models ---


class Factors(nn.Module):
    """Matrix factorisation: a rating is a mean, what is usual for user and item, and a product of eight factors."""

    def __init__(self, users=100, items=80, rank=8):
        super().__init__()
        self.user, self.item = nn.Embedding(users, rank + 1), nn.Embedding(items, rank + 1)
        self.mean = nn.Parameter(torch.zeros(1))
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, x):  # (N, 2) -> (N, 1)
        u, v = self.user(x[:, 0]), self.item(x[:, 1])
        return self.mean + u[:, :1] + v[:, :1] + (u[:, 1:] * v[:, 1:]).sum(1, keepdim=True)


def factors(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Factors()


@functools.cache
def dataset(name):
    return globals()[name]()


def model_of(layers):
    return factors if layers == "factors" else bl.models.mlp(layers)


# --- Rows ---


def rows(count=COUNT, watch=WATCH, quality=QUALITY, tasks=tuple(TASKS), sizes=SIZES, cache=None):
    """One row a task, quantity, batch size and seed; "lr" is the rate, "value" what was found."""
    found = []
    for task in tasks:
        counted = [row for batch_size in sizes for row in steps(task, batch_size, count, cache)]
        at = [row for row in counted if row["batch_size"] == AT]
        found += counted
        if at:
            last = round(np.median([row["value"] for row in at]))
            found += [row for seed in watch for row in noise(task, at[0]["lr"], last, seed)]
        if TASKS[task][-1] and quality:
            found += losses(task, quality, cache)
    table = pd.DataFrame(found)[["task", "quantity", "batch_size", "lr", "seed", "value"]]
    return table.assign(value=[float(f"{value:.6g}") for value in table.value])


def plain(task, **settings):
    """A run of plain SGD on the task."""
    name, layers = TASKS[task][:2]
    data = dataset(name)
    loss = "cross_entropy" if data.classes else "mse"
    return bl.Run(
        **(
            dict(data=data, model=model_of(layers), optimizer=bl.optim.sgd(), lr=1.0, loss=loss, device="cpu")
            | settings
        )
    )


def steps(task, batch_size, seeds, cache=None):
    target, top, bend, few, crit = TASKS[task][2:7]
    expected = few * (1 + crit / batch_size)
    run = plain(
        task,
        batch_size=batch_size,
        target=("val_loss", target),
        evaluate=("val",),
        examples=math.ceil(12 * expected) * batch_size,
        evaluate_every=max(1, round(0.03 * expected)) * batch_size,
    )
    lr = soonest(run, top * (1 - math.exp(-batch_size / bend)), cache)
    table = to_target(bl.sweep(run, lr=[lr], seed=seeds, cache=cache), *run.target)
    return [
        dict(task=task, quantity="steps", batch_size=batch_size, lr=lr, seed=seed, value=value)
        for seed, value in zip(table.seed, table.step, strict=True)
    ]


def soonest(run, guess, cache=None):
    """The rate with the fewest mean steps on ``CHOOSE``, of rates a factor 1.5 apart; none that fails on a seed."""
    powers = list(range(-2, 3))
    while len(powers) < 15:
        lrs = [float(f"{guess * 1.5**k:.3g}") for k in powers]
        tried = to_target(bl.sweep(run, lr=lrs, seed=CHOOSE, cache=cache), *run.target).groupby("lr").step.mean()
        if lrs[0] < tried.idxmin() < lrs[-1]:
            return float(tried.idxmin())
        powers = [powers[0] - 1, *powers] if tried.idxmin() == lrs[0] else [*powers, powers[-1] + 1]
    raise ValueError(f"no best rate for {run.data.name} at {run.batch_size} in {lrs}")


def noise(task, lr, last, seed):
    """B_simple after k quarters of ``last`` steps of batches of 64."""
    name, layers = TASKS[task][:2]
    data = dataset(name)
    x, y = data.train
    loss = cross_entropy if data.classes else mse_loss
    model = bl.models.build(model_of(layers), seed)
    rule = torch.optim.SGD(model.parameters(), lr=lr)
    some = torch.from_numpy(np.random.default_rng(np.random.SeedSequence(seed)).permutation(len(x))[:SAMPLE])
    looks, found = {round(k * last / LOOKS): k for k in range(LOOKS + 1)}, []
    for step, index in enumerate(bl.data.index_stream(len(x), AT, seed=seed)):
        if step in looks:
            value = bl.noise.noise_scale(model, loss, x[some], y[some], population=len(x)).b_simple.estimate
            quantity = f"noise {looks[step]}/{LOOKS}"
            found.append(dict(task=task, quantity=quantity, batch_size=AT, lr=lr, seed=seed, value=value))
        if step == last:
            return found
        rule.zero_grad()
        loss(model(x[index]), y[index]).backward()
        rule.step()
    raise ValueError("the stream of batches has ended")


def losses(task, seeds, cache=None):
    """Losses at the end of the three arms, at the rate with the lowest validation loss on ``CHOOSE``."""
    name = TASKS[task][0]
    data = dataset(name)
    data = replace(data, train=tuple(part[:MOST] for part in data.train))
    examples = PASSES * len(data.train[0])
    length = math.ceil(examples / SMALL)
    arms = (("small", SMALL, examples), ("large TE", LARGE, examples), ("large TS", LARGE, length * LARGE))
    found = []
    for (arm, batch_size, length), power in zip(arms, TASKS[task][-1], strict=True):
        schedule = bl.schedules.cosine(length)
        run = plain(
            task, data=data, batch_size=batch_size, examples=length, lr_schedule=schedule, evaluate_every=length
        )
        lr = lowest(run, power, cache)
        here = ends(bl.sweep(run, lr=[lr], seed=seeds, cache=cache))
        for part in ("train", "test"):
            found += [
                dict(task=task, quantity=f"{arm}, {part}", batch_size=batch_size, lr=lr, seed=seed, value=value)
                for seed, value in zip(here.seed, here[f"{part}_loss"], strict=True)
            ]
    return found


def lowest(run, power, cache=None):
    """The power of two with the lowest mean validation loss on ``CHOOSE``, of some that go on past it."""
    powers = list(range(power - 1, power + 2))
    while len(powers) < 12:
        table = ends(bl.sweep(run, lr=[2.0**k for k in powers], seed=CHOOSE, cache=cache))
        best = int(np.log2(table.groupby("lr").val_loss.mean().idxmin()))
        if best not in (powers[0], powers[-1]):
            return 2.0**best
        powers = [powers[0] - 1, *powers] if best == powers[0] else [*powers, powers[-1] + 1]
    raise ValueError(f"no best rate for {run.data.name} at {run.batch_size} in {powers}")
