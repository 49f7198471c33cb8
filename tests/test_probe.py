"""Every instrument at its door: what cannot be measured is refused by name, and what is only odd is measured right."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from batchlab import curvature, memory, noise, throughput


def mlp(dtype=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


X = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
Y = torch.arange(8) % 3


def timed(model, loss, x, y):
    """``measure_training`` of batches of 2 and of all the data; few and short samples, since no time is looked at."""
    settings = {"seconds": 1e-6, "block": 1e-6, "warmup": 1}
    return throughput.measure_training(
        model, loss, sgd(model), lambda b: (x[:b], y) if b == len(x) else (x[:b], y[:b]), [2, len(x)], **settings
    )


GRADIENTS = {
    "noise_scale": noise.noise_scale,
    "per_example_gradients": noise.per_example_gradients,
    "batch_gradients": lambda *given: noise.batch_gradients(*given, batch_size=2, draws=3),
    "cosine_to_full": lambda *given: noise.cosine_to_full(*given, batch_size=2, draws=3),
    "norm_pair": lambda *given: noise.norm_pair(*given, micro_batch=2),
    "hessian_vector": lambda *given: curvature.hessian_vector(
        *given, np.ones(sum(p.numel() for p in given[0].parameters() if p.requires_grad))
    ),
    "hessian": curvature.hessian,
    "top_eigenvalues": curvature.top_eigenvalues,
    "trace": lambda *given: curvature.trace(*given, probes=2),
    "sharpness": curvature.sharpness,
    "loss_along_line": lambda model, *given: curvature.loss_along_line(model, model, *given, at=[0.0]),
}
STEPS = {
    "step_memory": lambda model, loss, x, y: memory.step_memory(model, loss, sgd(model), x, y),
    "memory_law": lambda model, loss, x, y: memory.memory_law(
        model, loss, sgd(model), lambda b: (x, y) if b == len(x) else (x[:b], y[:b]), at=(8, 2)
    ),
    "step_fits": lambda model, loss, x, y: memory.step_fits(model, loss, sgd(model), lambda b: (x, y))(len(x)),
    "measure_training": timed,
}
DOORS = GRADIENTS | STEPS


class Odd(nn.Module):
    """An mlp beside another part, which ``use`` makes something of (by default nothing)."""

    def __init__(self, part, use=lambda output, part, x: output):
        super().__init__()
        self.mlp, self.part, self.use = mlp(), part, use

    def forward(self, x):
        return self.use(self.mlp(x), self.part, x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.Linear(4, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.c(self.b(torch.tanh(self.a(x))))


class Words(nn.Module):
    def __init__(self, sparse):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.last = nn.Embedding(5, 4, sparse=sparse), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.words(x).mean(1))


def complex_parameter():
    return Odd(nn.Parameter(torch.ones(3, dtype=torch.cfloat)), lambda output, part, x: (output * part).abs())


def made_in_inference_mode(make):
    with torch.inference_mode():
        return make()


def with_nan():
    x = X.clone()
    x[3, 2] = torch.nan
    return x


TOKENS = torch.arange(16).reshape(8, 2) % 5
ANOTHER = nn.Parameter(torch.tensor(1.0))
ALONE = r"^loss = .*: expected a loss that depends on the model's parameters$"
REFUSED = {  # model, loss, x, y, and the message
    "a constant": (mlp, lambda o, t: torch.tensor(1.0), X, Y, ALONE),
    "the targets alone": (mlp, lambda o, t: t.float().mean(), X, Y, ALONE),
    "detached": (mlp, lambda o, t: F.cross_entropy(o.detach(), t), X, Y, ALONE),
    "another's parameter": (mlp, lambda o, t: ANOTHER**2, X, Y, ALONE),
    "a float": (mlp, lambda o, t: 1.0, X, Y, r"^loss = 'float': expected a tensor of shape \(\)"),
    "no reduction": (mlp, lambda o, t: F.cross_entropy(o, t, reduction="none"), X, Y, r"^loss = \(\d,\): expected"),
    "a count": (mlp, lambda o, t: (o.argmax(1) == t).sum(), X, Y, "^loss = 'torch.int64': expected a real"),
    "a complex loss": (mlp, lambda o, t: F.cross_entropy(o, t) * 1j, X, Y, "^loss = 'torch.complex"),
    "NaN in one row": (mlp, F.cross_entropy, with_nan(), Y, "^x = nan: expected finite"),
    "sparse data": (mlp, F.cross_entropy, X.to_sparse(), Y, "^x.layout = 'torch.sparse_coo'"),
    "data without numbers": (mlp, F.cross_entropy, X.to("meta"), Y, "^x.device = 'meta'"),
    "targets of another length": (mlp, F.cross_entropy, X, Y[:7], r"^len\(y\) = 7: expected .* 8$"),
    "inference data": (mlp, F.cross_entropy, made_in_inference_mode(X.clone), Y, "^x = 'an inference tensor'"),
    "an inference model": (lambda: made_in_inference_mode(mlp), F.cross_entropy, X, Y, "^model.0.weight = 'an inf"),
    "a model that saw no data": (lambda: nn.LazyLinear(3), F.cross_entropy, X, Y, "^model.weight = 'an uninit"),
    "a model without numbers": (lambda: mlp().to("meta"), F.cross_entropy, X, Y, "^model.0.weight.device = 'meta'"),
    "two devices": (
        lambda: Odd(nn.Parameter(torch.ones(3, device="meta"))),
        F.cross_entropy,
        X,
        Y,
        "^model = 'parameters on cpu and meta': expected parameters on one device",
    ),
    "complex parameters": (complex_parameter, F.cross_entropy, X, Y, "^model.part = 'torch.complex64'"),
    "sparse gradients": (lambda: Words(True), F.cross_entropy, TOKENS, Y, "^model.words = 'Embedding'"),
}


SLICED, PEEKED = ("memory_law", "measure_training"), (*STEPS, "hessian_vector")
SPARED = {  # where it can be measured; or where the test itself would stumble over it first
    "complex parameters": STEPS,
    "sparse gradients": STEPS,
    "sparse data": SLICED,
    "a model that saw no data": PEEKED,
}


@pytest.mark.parametrize(
    ("name", "door"), [(name, door) for name in REFUSED for door in DOORS if door not in SPARED.get(name, ())]
)
def test_what_cannot_be_measured_is_refused_by_name(name, door):
    make, loss, x, y, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        DOORS[door](make(), loss, x, y)


@pytest.mark.parametrize("door", DOORS)
def test_inference_mode_is_refused_by_name(door):
    model, x, y = mlp(), X.clone(), Y.clone()
    with torch.inference_mode(), pytest.raises(ValueError, match=r"^torch.is_inference_mode_enabled\(\) = True"):
        DOORS[door](model, F.cross_entropy, x, y)


def test_a_bare_training_step_without_gradients_is_refused_by_name():
    model = mlp()
    prepare = throughput.training_step(model, F.cross_entropy, sgd(model), lambda b: (X[:b], Y[:b]))
    with torch.no_grad(), pytest.raises(ValueError, match=r"^torch.is_grad_enabled\(\) = False"):
        prepare(4)


def same(a, b):
    if isinstance(a, throughput.Throughput):  # what it holds are times
        return isinstance(b, throughput.Throughput)
    if isinstance(a, (torch.Tensor, np.ndarray)):
        return np.array_equal(np.asarray(a), np.asarray(b))
    fields = getattr(a, "__dict__", None)
    return all(same(v, vars(b)[k]) for k, v in fields.items()) if fields else a == b or a != a and b != b


PLAIN = (mlp, F.cross_entropy, X, Y)
WORKS = {  # something odd, beside the plain thing that it must equal
    "a tuple of outputs": (
        (lambda: Odd(None, lambda output, part, x: (output, x)), lambda o, t: F.cross_entropy(o[0], t), X, Y),
        (lambda: Odd(None), F.cross_entropy, X, Y),
    ),
    "a parameter of whole numbers": (
        (
            lambda: Odd(nn.Parameter(torch.tensor([2, 2, 2]), requires_grad=False), lambda o, part, x: o * part),
            F.cross_entropy,
            X,
            Y,
        ),
        (lambda: Odd(None, lambda o, part, x: o * 2), F.cross_entropy, X, Y),
    ),
}


@pytest.mark.parametrize("door", GRADIENTS)
@pytest.mark.parametrize("name", WORKS)
def test_what_is_only_odd_is_measured_like_its_plain_twin(name, door):
    odd, plain = (GRADIENTS[door](make(), *given) for make, *given in WORKS[name])
    assert same(odd, plain)


@pytest.mark.parametrize("door", DOORS)
def test_the_callers_no_grad_changes_nothing(door):
    found = []
    for context in (contextlib.nullcontext, torch.no_grad):
        with context():
            found.append(DOORS[door](mlp(), *PLAIN[1:]))
    assert same(*found)


def by_backward(model, loss, x, y):
    """The gradient of each example, one backward pass at a time, in the order of ``named_parameters``."""
    rows = []
    for i in range(len(x)):
        grads = torch.autograd.grad(
            loss(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters()), materialize_grads=True
        )
        rows.append(torch.cat([g.to_dense().flatten() if g.is_sparse else g.flatten() for g in grads]))
    return torch.stack(rows)


SPARE = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize("make", [Tied, lambda: Odd(SPARE)], ids=["tied parameters", "an unused parameter"])
def test_tied_and_unused_parameters_have_their_gradients(make):
    model = make()
    g = noise.per_example_gradients(model, F.cross_entropy, X, Y)
    expected = by_backward(model, F.cross_entropy, X, Y)
    torch.testing.assert_close(g, expected, atol=1e-6, rtol=1e-5)
    small, big = noise.norm_pair(model, F.cross_entropy, X, Y, 2)
    assert big == pytest.approx(float(expected.mean(0).square().sum()), rel=1e-4)
    assert small == pytest.approx(float(expected.view(4, 2, -1).mean(1).square().sum(1).mean()), rel=1e-4)
    found = memory.step_memory(model, F.cross_entropy, sgd(model), X, Y)
    used = [p for p in model.parameters() if p is not SPARE]
    assert found.gradients == 4 * sum(p.numel() for p in used)
    assert found.parameters == 4 * sum(p.numel() for p in model.parameters())
    hessian = curvature.hessian(model, F.cross_entropy, X, Y)
    assert len(hessian) == sum(p.numel() for p in model.parameters())
    if SPARE in set(model.parameters()):
        assert not hessian[:2].any() and not hessian[:, :2].any() and hessian[2:].any()


def test_sparse_gradients_are_counted_by_what_they_hold():
    model = Words(sparse=True)
    found = memory.step_memory(model, F.cross_entropy, sgd(model), TOKENS, Y)
    assert found.gradients == 16 * (8 + 4 * 4) + 4 * (4 * 3 + 3)  # an index and a row for each word met; the last layer
    assert found.parameters == 4 * (5 * 4 + 4 * 3 + 3)
    assert timed(model, F.cross_entropy, TOKENS, Y).law.fixed.estimate


def test_half_precision_is_measured_in_its_own_or_a_wider_type():
    model, x = mlp(torch.bfloat16), X.bfloat16()
    g = noise.per_example_gradients(model, F.cross_entropy, x, Y)
    wide = by_backward(mlp(torch.bfloat16).double(), F.cross_entropy, x.double(), Y)
    assert g.dtype == torch.bfloat16 and float((g.double() - wide).norm() / wide.norm()) < 0.03
    exact = curvature.hessian(mlp(torch.bfloat16).double(), F.cross_entropy, x.double(), Y)
    np.testing.assert_allclose(curvature.hessian(model, F.cross_entropy, x, Y), exact, atol=1e-12)
