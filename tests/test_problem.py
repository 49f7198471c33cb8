"""``Problem``: batches of any shape come out as they went in, and what is no problem is refused by name."""

import random
from collections import UserDict, namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import batchlab as bl
from batchlab.problem._trees import joined, leaves, rows

N = 24
X, Y = torch.arange(2.0 * N).reshape(N, 2), torch.arange(1.0 * N).reshape(N, 1)


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr)


def linear():
    torch.manual_seed(0)
    return nn.Linear(2, 1)


def problem(model=None, loss=mse_loss, data=(X, Y), optimizer=None, **settings):
    model = linear() if model is None else model
    settings.setdefault("batch_size", 8)
    return bl.Problem(model, loss, data, sgd(model) if optimizer is None else optimizer, **settings)


class Stream(IterableDataset):
    def __iter__(self):
        return zip(X, Y, strict=True)


class Ragged:
    """Examples of 1 to 4 tokens; a mapping with a mask, or a bare tensor and a label."""

    def __init__(self, mask=True):
        self.mask = mask

    def __len__(self):
        return N

    def __getitem__(self, i):
        ids = torch.full((1 + i % 4,), i)
        return (
            {"ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(i)} if self.mask else (ids, i)
        )


class Encoding(UserDict):
    """As transformers has it: a mapping that is no dict."""


Pair = namedtuple("Pair", "x y")


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        {"x": X, "labels": Y},
        Encoding({"x": X, "labels": Y}),
        Pair(X, Y),
        ({"x": X}, Y),
        TensorDataset(X, Y),
        DataLoader(TensorDataset(X, Y), batch_size=5, shuffle=True),
        DataLoader(Stream(), batch_size=5),
        [(X[i : i + 5], Y[i : i + 5]) for i in range(0, N, 5)],
        iter([(X[i : i + 5], Y[i : i + 5]) for i in range(0, N, 5)]),
    ],
    ids=lambda data: type(data).__name__,
)
def test_every_kind_of_data_gives_the_same_examples(data):
    """The pool holds each example once, inputs still beside their targets, and the loss is the plain one."""

    class Named(nn.Linear):  # whose input has the name that the mappings use
        def forward(self, x):
            return super().forward(x)

    p = problem(Named(2, 1), data=data)
    pool = p.pool()
    batch = pool.batch(N)
    x, y = (tensor for _, tensor in leaves(batch))
    assert sorted(y[:, 0].tolist()) == Y[:, 0].tolist()
    assert torch.equal(x, torch.cat([2 * y, 2 * y + 1], 1))  # as X and Y go together
    assert p.value(batch).item() == pytest.approx(mse_loss(p.model(x), y).item(), rel=1e-6)
    assert type(batch) is type(data) or not isinstance(data, (dict, UserDict, Pair))
    assert rows(pool.batch(3 * N)) == 3 * N


def test_several_inputs_and_the_form_of_the_loss():
    bilinear = nn.Bilinear(2, 1, 1)
    p = problem(bilinear, data=(X, Y, Y))
    assert p.value((X, Y, Y)).item() == mse_loss(bilinear(X, Y), Y).item()
    assert problem(loss=lambda model, batch: model(batch["x"]).mean(), data={"x": X}).takes == "model"
    assert problem(loss=lambda net, batch: net(batch["x"]).mean(), data={"x": X}).takes == "model"
    assert problem(loss=nn.MSELoss()).takes == problem(loss=lambda out, y: (out - y).mean()).takes == "outputs"
    forced = problem(loss=lambda m, b: m(b).square().mean(), data=X, takes="model")
    assert forced.value(X).item() == linear()(X).square().mean().item()


def test_ragged_examples_are_padded_by_their_mask():
    p = problem(loss=lambda model, batch: model.weight.sum(), data=Ragged(), batch_size=4)
    pool = p.pool()
    batch = pool.batch(N, longest=True)
    lengths = batch["attention_mask"].sum(1)
    assert lengths.tolist() == sorted((1 + i % 4 for i in range(N)), reverse=True)  # the longest first
    assert pool.batch(6, longest=True)["ids"].shape == (6, 4)
    for ids, mask, label in zip(batch["ids"], batch["attention_mask"], batch["labels"], strict=True):
        assert ids[mask.bool()].tolist() == [label] * int(mask.sum()) and ids[~mask.bool()].eq(0).all()
    tokens = [{"labels": torch.ones(n), "mask": torch.ones(n, dtype=torch.bool)} for n in (1, 3)]
    assert joined(tokens)["labels"].tolist() == [[1, -100, -100], [1, 1, 1]]


def test_the_batch_size_is_that_of_the_loader_or_of_the_first_batch():
    assert problem(data=DataLoader(TensorDataset(X, Y), batch_size=6), batch_size=None).batch_size == 6
    assert problem(data=[(X[:7], Y[:7])], batch_size=None).batch_size == 7


def test_the_pool_is_a_sample_without_replacement_and_drawn_from_the_seed():
    first, again, other = (problem().pool(10, seed).batch(10)[1][:, 0].tolist() for seed in (0, 0, 1))
    assert first == again != other and len(set(first)) == 10
    assert (problem().pool(10).population, problem().pool(10).size) == (N, 10)
    assert problem(data=DataLoader(Stream(), batch_size=5)).pool(10).population is None  # not read to its end


def test_what_an_iterator_gave_is_counted():
    source = iter([(X[i : i + 5], Y[i : i + 5]) for i in range(0, N, 5)])
    assert problem(data=source).pool(10).taken == 2
    assert len(next(source)[0]) == 5


@pytest.mark.parametrize("shape", ["tuple", "mapping"])
def test_instruments_take_the_arguments_of_a_problem(shape):
    """The noise scale through ``arguments`` is that of the plain tensors."""
    torch.manual_seed(1)
    x, y, model = torch.randn(50, 2), torch.randn(50, 1), linear()
    data = (x, y) if shape == "tuple" else {"input": x, "labels": y}
    p = problem(model, data=data)
    found = bl.noise.noise_scale(*p.arguments(50), population=50)
    plain = bl.noise.noise_scale(model, mse_loss, x, y, population=50)
    assert found.trace.estimate == pytest.approx(plain.trace.estimate, rel=1e-4)
    assert found.b_simple.estimate == pytest.approx(plain.b_simple.estimate, rel=1e-4)


def test_drawing_leaves_every_generator_where_it_was():
    class Drawing:
        def __init__(self):
            self.own, self.python = np.random.default_rng(0), random.Random(0)

        def __len__(self):
            return N

        def __getitem__(self, i):
            random.random(), np.random.random(), self.own.random(), self.python.random()  # noqa: NPY002
            return X[i] + torch.rand(2), Y[i]

    source, shuffling = Drawing(), torch.Generator().manual_seed(3)
    loader = DataLoader(source, batch_size=4, shuffle=True, generator=shuffling)
    p = problem(data=loader, batch_size=None)

    def states():
        return (
            random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist(),  # noqa: NPY002
            str(source.own.bit_generator.state), source.python.getstate(), shuffling.get_state().tolist(),
        )  # fmt: skip

    before = states()
    first, second = p.pool().batch(8), p.pool().batch(8)
    assert states() == before
    assert torch.equal(second[1], first[1])


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 1)


ELSEWHERE = nn.Linear(2, 1)
BAD = {  # name: (what is wrong, what the error names)
    "a model that is none": (lambda: problem(nn.functional.relu, optimizer=sgd(ELSEWHERE)), "model = "),
    "no loss": (lambda: problem(loss=None), "loss = None"),
    "a loss that is a number": (lambda: problem(loss=0.5), "loss = 0.5"),
    "no optimizer": (lambda: bl.Problem(linear(), mse_loss, (X, Y), None, 8), "optimizer = 'NoneType'"),
    "a rate for an optimizer": (lambda: problem(optimizer=0.1), "optimizer = 'float'"),
    "LBFGS": (lambda: (m := linear()) and problem(m, optimizer=torch.optim.LBFGS(m.parameters())), "LBFGS"),
    "an optimizer of another model": (lambda: problem(optimizer=sgd(ELSEWHERE)), "not the model's"),
    "an optimizer of two models": (
        lambda: (m := linear()) and problem(m, optimizer=torch.optim.SGD([*m.parameters(), *ELSEWHERE.parameters()])),
        "beside the model's",
    ),
    "no data": (lambda: problem(data=None), "data = 'NoneType'"),
    "a number for data": (lambda: problem(data=3), "data = 'int'"),
    "no batch size": (lambda: problem(batch_size=None), "batch_size = None"),
    "a batch size of 0": (lambda: problem(batch_size=0), "batch_size = 0"),
    "half a batch size": (lambda: problem(batch_size=2.5), "batch_size = 2.5"),
    "another form of loss": (lambda: problem(takes="batch"), "takes = 'batch'"),
    "an empty list": (lambda: problem(data=[]).pool(), "an empty list"),
    "an iterator at its end": (lambda: problem(data=iter([])).pool(), "an empty list_iterator"),
    "an empty data set": (lambda: problem(data=TensorDataset(X[:0], Y[:0])).pool(), "an empty TensorDataset"),
    "an empty loader": (lambda: problem(data=DataLoader(TensorDataset(X[:0], Y[:0]))).pool(), "an empty TensorDataset"),
    "tensors without rows": (lambda: problem(data=(X[:0], Y[:0])).pool(), "no examples"),
    "tensors of unlike lengths": (lambda: problem(data=(X, Y[:5])).pool(), "24 in data[0], 5 in data[1]"),
    "a tensor without axes": (lambda: problem(data=(X, torch.tensor(1.0))).pool(), "shape ()"),
    "words": (lambda: problem(data=(["one", "two"], "y")).pool(), "data = 'tuple'"),
    "batches of words": (lambda: problem(data=["one", "two"]).pool(), "batch 0 of data"),
    "inputs and targets in a list": (lambda: problem(data=[X, Y.long()]).pool(), "a list is taken for"),
    "ragged without a mask": (lambda: problem(data=Ragged(mask=False)).pool().batch(8), "without a mask"),
    "ragged batches without a mask": (
        lambda: problem(data=[(torch.ones(4, n), torch.ones(4)) for n in (2, 3)]).pool().batch(8),
        "without a mask",
    ),
    "a collate_fn that drops": (
        lambda: (
            problem(data=DataLoader(TensorDataset(X, Y), 4, collate_fn=lambda rows: (X[:1], Y[:1]))).pool().batch(4)
        ),
        "collate_fn = '1 examples of 4'",
    ),
    "one tensor and a loss of outputs": (lambda: problem(data=X).value(X), "(inputs, targets)"),
    "a mapping without targets": (lambda: problem().value({"x": X, "z": Y}), "one of labels"),
    "a pool of nothing": (lambda: problem().pool(0), "most = 0"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_is_no_problem_is_refused_by_name(bad):
    make, named = BAD[bad]
    with pytest.raises(ValueError) as refused:
        make()
    assert named in str(refused.value)


def test_a_compiled_model_is_measured_as_itself():
    model = linear()
    p = problem(torch.compile(model, backend="eager"), optimizer=sgd(model))
    assert bl.noise.noise_scale(*p.arguments(N), population=N).trace.estimate == pytest.approx(
        bl.noise.noise_scale(model, mse_loss, X, Y, population=N).trace.estimate, rel=1e-4
    )


def test_cross_entropy_is_taken_for_a_loss_of_outputs():
    assert problem(loss=cross_entropy).takes == "outputs"
