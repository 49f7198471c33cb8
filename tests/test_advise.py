"""``advise`` measures what is there, changes nothing, and refuses by name what it cannot judge."""

import functools
import gc
import itertools
import math
import random
import time
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

import batchlab as bl
from batchlab.advise import _signal as signal
from batchlab.advise._branches import branches
from batchlab.advise._machine import largest_that_fits, loading, step_bytes
from batchlab.advise._measure import length_of_run, settings_of
from batchlab.advise._signal import rate_range, short_run
from batchlab.advise._steps import kind_of_loss, take

N = 256
# Seconds that never run out, and a clock that only counts: what is measured then depends on no machine.
QUICK = dict(
    seconds=1e9, most=32, steps=8, progress=False, memory=2**30, clock=functools.partial(next, itertools.count(0.0))
)


def FOREVER():
    return 1e9 - time.perf_counter()


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, Y = drawn(N, 4), drawn(N, 1, seed=1)


def sgd(model, lr=0.01, **settings):
    return torch.optim.SGD(model.parameters(), lr=lr, **settings)


def net(*more):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), *more, nn.Linear(8, 1))


def problem(model=None, loss=mse_loss, data=(X, Y), optimizer=None, batch_size=16, **settings):
    model = net() if model is None else model
    return bl.Problem(model, loss, data, sgd(model) if optimizer is None else optimizer, batch_size, **settings)


def state(p):
    """Everything that must be afterwards what it was."""
    rule = p.optimizer.state_dict()
    return repr(
        (
            [(name, t.tolist()) for name, t in p.model.state_dict().items()],
            [None if q.grad is None else q.grad.tolist() for q in p.model.parameters()],
            [m.training for m in p.model.modules()],
            rule["param_groups"],
            {k: {n: torch.as_tensor(v).tolist() for n, v in s.items()} for k, s in rule["state"].items()},
            random.getstate(), np.random.get_state(), torch.get_rng_state().tolist(),  # noqa: NPY002
        )
    )  # fmt: skip


# --- It measures the truth -----------------------------------------------------------------------------------------


def test_both_noise_scales_are_that_of_the_data():
    """At a rate of 1e-12 the weights stay, so that micro-batches and single examples measure the same exact number."""
    model, x = net(), drawn(512, 4)
    p = problem(model, data=(x, x @ torch.ones(4, 1) + 1.0), optimizer=sgd(model, 1e-12), batch_size=32)
    truth = bl.noise.noise_scale(model, mse_loss, *p.data, population=512).b_simple.estimate
    looks, layers, notes = short_run(p, p.pool(), 100, FOREVER, seed=0)
    assert [look.examples for look in looks] == [
        32 * step for step in (0, 12, 25, 38, 50, 62, 75, 88, 100)
    ] and not notes
    assert [look.b_simple.estimate for look in looks] == pytest.approx([truth] * 9, rel=1e-3)
    exact = bl.noise.by_layer(model, mse_loss, *p.data, population=512)
    assert list(layers) == list(exact) == ["0", "2"]
    for name, scale in layers.items():
        assert scale.low < exact[name].b_simple.estimate < scale.high

    tied = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))  # no single examples
    p = problem(tied, data=p.data, optimizer=sgd(tied, 1e-12), batch_size=64)
    looks, layers, notes = short_run(p, p.pool(), 100, FOREVER, seed=0)
    assert [look.examples for look in looks] == [1600, 3200, 4800, 6400]
    assert "micro-batches of 16" in notes[0][1] and all("two_batch" in look.call for look in looks)


@pytest.mark.parametrize(("examples", "size", "population", "steps"), [
    (None, 512, 512, 200), (6400, 512, 512, 100), (6400, 128, 512, 25), (6400, 512, None, 100), (32, 512, 512, 8),
])  # fmt: skip
def test_the_short_run_is_the_first_half_of_the_run_in_passes_over_the_pool(examples, size, population, steps):
    pool = SimpleNamespace(size=size, population=population)
    assert length_of_run(problem(batch_size=32), pool, examples) == steps


def test_looks_take_at_most_half_of_the_time():
    """Each look at single examples costs a second of ten, a step nothing: four fit into half of the nine left."""
    now = [10.0]
    p, look = problem(batch_size=4), signal.single_examples

    def dear(*arguments):
        now[0] -= 1.0
        return look(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "single_examples", dear)
        looks, _, _ = short_run(p, p.pool(), 40, lambda: now[0], seed=0)
    assert [look.examples for look in looks] == [0, 40, 80, 120, 160]


def test_micro_batches_where_single_examples_are_not_to_be_had():
    class Plain(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum().item() < 1e9 else x  # which no vmap can follow

    torch.manual_seed(0)
    model, x = Plain(4, 1), drawn(512, 4)
    data = x, x @ torch.ones(4, 1) + 1.0 + 0.5 * drawn(512, 1, seed=2)
    p = problem(model, data=data, optimizer=sgd(model, 1e-12), batch_size=32)
    looks, _, notes = short_run(p, p.pool(), 200, FOREVER, seed=0)
    same = nn.Linear(4, 1)
    same.load_state_dict(model.state_dict())
    truth = bl.noise.noise_scale(same, mse_loss, *data, population=512).b_simple.estimate
    assert len(looks) == 4 and "micro-batches of 8" in notes[0][1]
    assert sum(look.b_simple.low < truth < look.b_simple.high for look in looks) >= 3


def test_the_largest_batch_stays_under_the_cap_and_the_next_does_not():
    p = problem(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 1)), data=(drawn(N, 64), Y))
    pool, cap = p.pool(), 2 * 2**20
    found = largest_that_fits(p, pool, cap, 10_000, FOREVER)
    assert found.ended == "memory" and step_bytes(p, pool.batch(found.largest)) <= cap
    assert step_bytes(p, pool.batch(math.ceil(1.15 * found.largest))) > cap
    small = largest_that_fits(p, pool, 2**30, 100, FOREVER)
    assert (small.largest, small.ended) == (100, "most")


class Ragged:
    """Sequences of 1 to 64 steps: most are short."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        steps = 64 if i == 0 else 2
        return {"x": torch.ones(steps, 8), "mask": torch.ones(steps, dtype=torch.int64), "labels": torch.tensor(i % 2)}


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 64), nn.Linear(64, 2)

    def forward(self, x, mask):
        h = torch.relu(self.a(x)) * mask[..., None]
        return self.b(h.sum(1) / mask.sum(1, keepdim=True))


def test_what_fits_is_tried_on_the_longest_examples_too():
    torch.manual_seed(0)
    model = Pooled()
    p = problem(model, cross_entropy, Ragged(), sgd(model), 4)
    found = bl.advise(p, **{**QUICK, "memory": 2**20, "most": 256})
    m = found.measured
    assert m.largest_longest < m.largest and not m.bounded
    assert step_bytes(p, p.pool().batch(m.largest_longest, longest=True)) <= 2**20
    assert found.advice.micro_batch <= m.largest_longest
    assert any("from 19 to 577 numbers" in says for _, says in m.notes)


def test_loading_is_timed():
    class Slow(TensorDataset):
        def __getitem__(self, i):
            time.sleep(0.002)
            return super().__getitem__(i)

    fixed, each, overlapped = loading(problem(data=DataLoader(Slow(X, Y), 16)), None, FOREVER)
    assert (fixed, overlapped) == (0.0, False) and 0.002 <= each < 0.02  # a sleep is never shorter
    p = problem(data=Slow(X[:16], Y[:16]))
    assert loading(p, p.pool(), FOREVER)[1] >= 0.002


def test_a_rate_range_finds_where_a_quadratic_leaves():
    """h/2 (w - x)^2 in the mean: descent leaves from a rate of 2 / h on; the smoothed loss tells some steps later."""
    for h in (1.0, 16.0):
        model = nn.Linear(1, 1, bias=False)
        nn.init.ones_(model.weight)
        loss = lambda model, batch, h=h: 0.5 * h * (model.weight - batch[:, :1]).square().mean()  # noqa: E731
        p = problem(model, loss, X, sgd(model, 0.2 / h))
        found = rate_range(p, p.pool(), 4, FOREVER, seed=0)
        assert 2 / h < found.diverges < 8 / h and found.steepest < found.diverges
        assert found.lrs[0] == pytest.approx(0.002 / h)


def test_a_branch_that_loses_is_told_from_one_that_keeps():
    """Without label noise, at small rates: four times the batch keeps the loss at four times the rate, not at one."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1), drawn(1024, 4)
    p = problem(model, data=(x, x @ torch.ones(4, 1)), optimizer=sgd(model, 0.01), batch_size=4)
    before = state(p)
    for rate, verdict in ((0.04, "kept"), (0.01, "lost")):
        (found,) = branches(p, p.pool(), [16], {16: rate}, 800, FOREVER, seed=0)
        assert (found.batch_size, found.lr, found.verdict) == (16, rate, verdict)
    assert state(p) == before
    (wild,) = branches(p, p.pool(), [16], {16: 100.0}, 1600, FOREVER, seed=0)
    assert (wild.verdict, wild.excess.low) == ("lost", math.inf)
    asked = bl.advise(problem(), **{**QUICK, "steps": 16}, branch=True).measured.branches
    assert {b.batch_size for b in asked} >= {32, 64} and all(b.lr > 0.01 for b in asked)


# --- It takes what there is ----------------------------------------------------------------------------------------


class Speaker(nn.Module):
    """As a model of transformers: it takes names, and returns an object with .loss and .logits."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.head(self.embed(input_ids))
        loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return SimpleNamespace(loss=loss, logits=logits)


def speaking(rows=64):
    torch.manual_seed(0)
    ids = torch.randint(0, 20, (rows, 6), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


SHAPES = {
    "a mapping, as of Hugging Face": lambda: problem(
        m := Speaker(), lambda model, batch: model(**batch).loss, speaking(), torch.optim.AdamW(m.parameters())
    ),
    "a loader": lambda: problem(data=DataLoader(TensorDataset(X, Y), 8, shuffle=True), batch_size=None),
    "a list of batches": lambda: problem(data=[(X[i : i + 8], Y[i : i + 8]) for i in range(0, N, 8)], batch_size=None),
    "an iterator": lambda: problem(data=iter([(X[i : i + 8], Y[i : i + 8]) for i in range(0, N, 8)])),
    "batch normalisation": lambda: problem(net(nn.BatchNorm1d(8)), batch_size=32),
    "batch normalisation, small": lambda: problem(net(nn.BatchNorm1d(8)), batch_size=4),
    "dropout": lambda: problem(net(nn.Dropout(0.5))),
    "a batch of one": lambda: problem(batch_size=1),
    "compiled": lambda: problem(torch.compile(m := net(), backend="eager"), optimizer=sgd(m)),
    "RMSprop": lambda: problem(m := net(), optimizer=torch.optim.RMSprop(m.parameters(), 1e-3)),
    "Adagrad": lambda: problem(m := net(), optimizer=torch.optim.Adagrad(m.parameters(), 1e-3)),
    "frozen layers": lambda: problem(nn.Sequential(nn.Linear(4, 8).requires_grad_(False), nn.Linear(8, 1))),
    "a random loss": lambda: problem(
        loss=lambda model, batch: (model(batch[0]) + torch.rand(1) - batch[1]).square().mean()
    ),
    "two examples": lambda: problem(data=(X[:2], Y[:2]), batch_size=2),
}
SAID = {
    "an iterator": "batches that were taken from it are gone",
    "batch normalisation": "no noise scale knows",
    "batch normalisation, small": "too small to be cut",
    "dropout": "taken without it",
    "RMSprop": "RMSprop",
    "Adagrad": "how this optimizer's settings move is not known",
    "a random loss": "random even in evaluation mode",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_it_takes_every_shape_and_changes_nothing(shape):
    p = SHAPES[shape]()
    before = state(p)
    report = bl.advise(p, **QUICK)
    assert state(p) == before
    assert 1 <= report.batch_size and report.measured.timings
    assert SAID.get(shape, "") in str(report.notes())


def weighted(outputs, targets):
    two = torch.cat([outputs, -outputs], 1)
    return cross_entropy(two, (targets[:, 0] > 0).long(), weight=torch.tensor([1.0, 30.0]))


@pytest.mark.parametrize("shift", [0, 1])
def test_a_weighted_mean_is_handled_and_named(shift):
    """Over tokens, also where a causal model drops the first, and with class weights."""
    data = speaking()
    data["labels"] = data["labels"].masked_fill(torch.arange(6) >= (torch.arange(64) % 4 + 3)[:, None], -100)

    def loss(model, batch):
        logits = model(**batch).logits[:, shift:]
        return cross_entropy(logits.flatten(0, 1), batch["labels"][:, shift:].flatten(), ignore_index=-100)

    p = problem(m := Speaker(), loss, data, sgd(m))
    assert kind_of_loss(p, p.pool()) == "weighted"
    assert "some examples weigh more" in str(bl.advise(p, **QUICK).notes())
    p = problem(loss=weighted)
    assert kind_of_loss(p, p.pool()) == "weighted"


@pytest.mark.parametrize("loss", [mse_loss, nn.L1Loss(), nn.HuberLoss(), lambda o, y: cross_entropy(o, 0 * y)])
def test_a_mean_is_known_as_one(loss):
    p = problem(loss=loss)
    assert kind_of_loss(p, p.pool()) == "mean"


def test_it_trains_on_in_the_mode_the_model_is_in():
    """Ordinary steps: what the advisor times is what a plain loop does."""
    model = net(nn.Dropout(0.5))
    p, twin = problem(model), net(nn.Dropout(0.5))
    rule = sgd(twin)
    torch.manual_seed(5)
    take(p, (X[:8], Y[:8]))
    torch.manual_seed(5)
    mse_loss(twin(X[:8]), Y[:8]).backward()
    rule.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


# --- Whatever happens ----------------------------------------------------------------------------------------------


class Enough(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "call"),
    [*((KeyboardInterrupt, call) for call in (1, 2, 7, 30, 90, 150)), (Enough, 5), (SystemExit, 100)],
)
def test_an_interruption_anywhere_leaves_everything_as_it_was(error, call):
    model = net(nn.BatchNorm1d(8), nn.Dropout(0.2))
    rule = torch.optim.Adam(model.parameters(), 1e-3)
    mse_loss(model(X), Y).backward()
    rule.step()  # a state and gradients to keep
    model[0].eval()  # and a mode of its own
    calls = 0

    def loss(outputs, targets):
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return mse_loss(outputs, targets)

    p = problem(model, loss, optimizer=rule, batch_size=32)
    before = state(p)
    with pytest.raises(error):
        bl.advise(p, **QUICK)
    assert state(p) == before


def test_the_same_seed_gives_the_same_measurements():
    """All but the seconds of loading, which no clock of ours counts."""
    found = []
    for seed in (0, 0, 1):
        found.append(replace(bl.advise(problem(), seed=seed, **QUICK).measured, load=None))
    assert found[0] == found[1]
    assert found[0].looks == found[1].looks != found[2].looks
    assert found[0].layers == found[1].layers and found[0].ranges[0] == found[1].ranges[0] != found[2].ranges[0]
    assert found[0].largest == found[1].largest == 32


def test_when_the_time_is_over_the_answer_is_partial_and_says_so():
    report = bl.advise(problem(), **{**QUICK, "seconds": 0.01, "clock": time.perf_counter})
    late = {name for name, says in report.notes() if "the time was over" in says}
    assert late >= {"noise", "rates"} and report.batch_size >= 1
    assert report.measured.looks == () and report.advice.noise is None


def test_it_keeps_to_its_seconds():
    """In processor time, the last step of a part and what begins and ends it aside."""
    start = time.process_time()
    bl.advise(problem(), **{**QUICK, "seconds": 2, "steps": 10**6, "most": None, "clock": time.process_time})
    assert time.process_time() - start < 4


def test_progress_is_shown_on_stderr(capsys):
    bl.advise(problem(), **{**QUICK, "progress": True})
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[-1] for line in lines][0] == "data" and lines[-1].startswith("100%")
    assert {line.split()[-1] for line in lines} >= {"memory", "time", "noise", "rates", "done"}


def test_settings_are_read_from_the_optimizer():
    model = net()
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.8, 0.95), eps=1e-7, weight_decay=0.1)
    found = {"lr": 1e-3, "beta1": 0.8, "beta2": 0.95, "eps": 1e-7, "weight_decay": 0.1}
    assert settings_of(adamw) == ("adamw", (found,))
    assert settings_of(sgd(model, 0.1)) == ("sgd", ({"lr": 0.1},))
    assert settings_of(sgd(model, 0.1, momentum=0.9)) == ("momentum", ({"lr": 0.1, "momentum": 0.9},))
    groups = torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 1.0}], lr=0.1)
    assert [group["lr"] for group in settings_of(groups)[1]] == [0.1, 1.0]


# --- What it refuses -----------------------------------------------------------------------------------------------


class Elsewhere(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 1, device="meta")

    def forward(self, x):
        return self.b(self.a(x))


def spoiled(value):
    model = net()
    with torch.no_grad():
        model[0].weight[0, 0] = value
    return model


def outputs_of(value):
    return lambda outputs, targets: outputs.mean() * value


def contrastive(outputs, targets):
    return cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)))


def ranking(outputs, targets):
    return nn.functional.softplus(5 * (outputs - outputs.T) * (targets.T - targets).sign()).mean()


def unseen():
    model = nn.Sequential(nn.LazyLinear(1))
    return bl.Problem(model, mse_loss, (X, Y), torch.optim.SGD(model.parameters(), lr=0.1), 8)


BAD = {  # name: (problem, settings, what the error names)
    "weights on two devices": (lambda: problem(Elsewhere()), {}, "parameters on cpu and meta"),
    "weights on no device": (lambda: problem(nn.Linear(4, 1, device="meta")), {}, "meta"),
    "requires_grad nowhere": (lambda: problem(net().requires_grad_(False)), {}, "requires a gradient"),
    "lazy weights": (unseen, {}, "uninitialised"),
    "a weight that is NaN": (lambda: problem(spoiled(math.nan)), {}, "= nan: expected finite"),
    "a weight that is infinite": (lambda: problem(spoiled(math.inf)), {}, "= inf: expected finite"),
    "a model that returns NaN": (lambda: problem(loss=outputs_of(math.nan)), {}, "loss = nan"),
    "a loss that is infinite": (lambda: problem(loss=outputs_of(math.inf)), {}, "loss = "),
    "a gradient that is NaN": (
        lambda: problem(loss=lambda o, y: (o * 0).sqrt().mean() + o.mean()), {}, "the gradient of the loss",
    ),
    "a loss that is a vector": (lambda: problem(loss=lambda o, y: (o - y).square()), {}, "loss = (16, 1)"),
    "a loss that is a float": (lambda: problem(loss=lambda o, y: 0.5), {}, "loss = 'float'"),
    "a loss that is an integer": (lambda: problem(loss=lambda o, y: o.sum().long()), {}, "loss = 'torch.int64'"),
    "a loss that is None": (lambda: problem(loss=lambda o, y: None), {}, "loss = 'NoneType'"),
    "a loss without it": (lambda: problem(loss=lambda o, y: y.mean().requires_grad_()), {}, "model's parameters"),
    "a loss that is detached": (lambda: problem(loss=lambda o, y: mse_loss(o, y).detach()), {}, "model's parameters"),
    "a sum": (lambda: problem(loss=lambda o, y: (o - y).square().sum()), {}, "the sum of its two halves"),
    "a contrastive loss": (lambda: problem(loss=contrastive), {}, "a contrastive or ranking loss"),
    "a ranking loss": (lambda: problem(loss=ranking), {}, "a contrastive or ranking loss"),
    "statistics of the batch": (
        lambda: problem(net(nn.BatchNorm1d(8, track_running_stats=False))), {}, "batch statistics in any mode",
    ),
    "a rate of zero": (lambda: problem(m := net(), optimizer=sgd(m, 0.0)), {}, "optimizer.lr = 0.0"),
    "ragged without a mask": (lambda: problem(data=[(torch.ones(8, n), Y[:8]) for n in (3, 4)]), {}, "without a mask"),
    "an empty loader": (lambda: problem(data=DataLoader(TensorDataset(X[:0], Y[:0]), 4)), {}, "an empty TensorDataset"),
    "a loader that ended": (lambda: problem(data=iter([])), {}, "an empty list_iterator"),
    "out of memory at one example": (problem, {"memory": 100}, "memory = 100: expected more"),
    "memory below zero": (problem, {"memory": -1}, "memory = -1"),
    "no time": (problem, {"seconds": 0}, "seconds = 0"),
    "time without end": (problem, {"seconds": math.inf}, "seconds = inf"),
    "a largest batch of one": (problem, {"most": 1}, "most = 1"),
    "a run of two steps": (problem, {"steps": 2}, "steps = 2"),
    "another objective": (problem, {"objective": "accuracy"}, "objective = 'accuracy'"),
    "a deadline unasked": (problem, {"deadline": 3}, "deadline = 3"),
    "no deadline": (problem, {"objective": "deadline", "examples": 9}, "deadline = None"),
    "a deadline without examples": (problem, {"objective": "deadline", "deadline": 3}, "examples = None"),
    "no examples": (problem, {"examples": -5}, "examples = -5"),
    "devices without a cost": (problem, {"devices": (2,)}, "device_seconds = None"),
    "no devices": (problem, {"devices": (0,), "device_seconds": max}, "devices = 0"),
    "a seed below zero": (problem, {"seed": -1}, "seed = -1"),
    "a branch that is a word": (problem, {"branch": "yes"}, "branch = 'yes'"),
    "progress that is a word": (problem, {"progress": "bar"}, "progress = 'bar'"),
    "a Problem and a loss": (problem, {"loss": mse_loss}, "None beside a Problem"),
    "a Problem and a batch size": (problem, {"batch_size": 3}, "batch_size = 3"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_problem_is_refused_by_name_and_left_as_it_was(bad):
    make, settings, named = BAD[bad]
    p = make()
    kept = None if bad in ("weights on two devices", "weights on no device", "lazy weights") else state(p)
    with pytest.raises(ValueError) as refused:
        bl.advise(p, **{**QUICK, **settings})
    assert named in str(refused.value)
    assert kept is None or state(p) == kept


def test_inference_mode_is_refused():
    p = problem()
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        bl.advise(p, **QUICK)


def test_an_error_of_the_model_is_passed_on():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        bl.advise(problem(data=(drawn(N, 5), Y)), **QUICK)


def test_nothing_of_a_run_is_held_afterwards():
    model = net()
    alive = weakref.ref(model)
    report = bl.advise(problem(model), **QUICK)
    del model
    gc.collect()
    assert alive() is None and report.batch_size >= 1  # the report holds numbers, not the model
