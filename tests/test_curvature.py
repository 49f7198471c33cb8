"""Curvature against independent oracles: closed forms, torch's own Hessian in float64, brute force."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, scaled_dot_product_attention

from batchlab import curvature


class Spread(nn.Module):
    """Outputs whose mean is the quadratic 0.5 sum_i h_i w_i^2: a loss with a Hessian of our choice."""

    def __init__(self, h, w=None):
        super().__init__()
        self.register_buffer("h", torch.tensor(h, dtype=torch.float64))
        self.w = nn.Parameter(torch.zeros_like(self.h) if w is None else torch.tensor(w, dtype=torch.float64))

    def forward(self, x):
        return (0.5 * self.h * self.w**2).sum().expand(len(x))


def mean_output(output, target):
    return output.mean()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inward, self.outward = nn.Linear(3, 12), nn.Linear(4, 2)
        self.norm = nn.LayerNorm(3)

    def forward(self, x):  # (B, T, 3)
        q, k, v = self.inward(self.norm(x)).split(4, dim=-1)
        return self.outward(scaled_dot_product_attention(q, k, v, is_causal=True)).mean(dim=1)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3, bias=False)
        self.b = nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


def problem(kind):
    torch.manual_seed(0)
    labels = torch.randint(0, 2, (13,))
    if kind == "mlp":
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
        return model, cross_entropy, torch.randn(13, 4), labels
    if kind == "relu mse":
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        return model, mse_loss, torch.randn(13, 4), torch.randn(13, 2)
    if kind == "conv, batch norm in eval":
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))
        model[1].running_var.mul_(3)
        return model, cross_entropy, torch.randn(13, 1, 4, 4), labels
    if kind == "attention":
        return Attention(), cross_entropy, torch.randn(13, 5, 3), labels
    if kind == "tied":
        return Tied(), mse_loss, torch.randn(13, 3), torch.randn(13, 3)
    if kind == "embedding":
        model = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(6, 2))
        return model, cross_entropy, torch.randint(0, 5, (13, 2)), labels
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    model[0].requires_grad_(False)
    return model, cross_entropy, torch.randn(13, 4), labels


KINDS = ["mlp", "relu mse", "conv, batch norm in eval", "attention", "tied", "embedding", "frozen layer"]


def exact_hessian(model, loss, x, y):
    """torch.autograd.functional.hessian of the whole batch in float64: another road to the same matrix."""
    model = model.double()
    x = x.double() if x.is_floating_point() else x
    y = y.double() if y.is_floating_point() else y
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]

    def flat_loss(w):
        parts = w.split([p.numel() for _, p in named])
        values = {n: part.reshape(p.shape) for (n, p), part in zip(named, parts, strict=True)}
        return loss(torch.func.functional_call(model, values, (x,)), y)

    w = torch.cat([p.detach().reshape(-1) for _, p in named])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.autograd.functional.hessian(flat_loss, w).numpy()


@pytest.mark.parametrize(("kind", "micro_batch"), [*((kind, 1024) for kind in KINDS), ("mlp", 5), ("embedding", 5)])
def test_hessian_and_products_are_exact(kind, micro_batch):
    model, loss, x, y = problem(kind)
    model.eval()
    before = [p.detach().clone() for p in model.parameters()]
    found = curvature.hessian(model, loss, x, y, micro_batch=micro_batch)
    assert all(torch.equal(p, q) and p.dtype == torch.float32 for p, q in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())
    v = np.random.default_rng(1).standard_normal(len(found))
    product = curvature.hessian_vector(model, loss, x, y, v, micro_batch=micro_batch)
    exact = exact_hessian(model, loss, x, y)
    np.testing.assert_allclose(found, exact, atol=1e-10 * np.abs(exact).max())
    np.testing.assert_allclose(product, exact @ v, atol=1e-10 * np.abs(exact @ v).max())


def test_softmax_regression_against_its_closed_form():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((30, 4)), rng.standard_normal((3, 4))
    model = nn.Linear(4, 3, bias=False).double()
    model.weight.data = torch.tensor(w)
    p = np.exp(x @ w.T) / np.exp(x @ w.T).sum(axis=1, keepdims=True)
    exact = sum(np.kron(np.diag(q) - np.outer(q, q), np.outer(r, r)) for q, r in zip(p, x, strict=True)) / 30
    found = curvature.hessian(model, cross_entropy, torch.tensor(x), torch.zeros(30, dtype=torch.long))
    np.testing.assert_allclose(found, exact, atol=1e-12)


@pytest.mark.parametrize(("kind", "k"), [("mlp", 1), ("mlp", 3), ("relu mse", 44), ("conv, batch norm in eval", 2)])
def test_top_eigenvalues_match_the_exact_spectrum(kind, k):
    model, loss, x, y = problem(kind)
    model.eval()
    exact = np.linalg.eigvalsh(exact_hessian(model, loss, x, y))[::-1]
    found = curvature.top_eigenvalues(model, loss, x, y, k=k, tolerance=1e-12)
    np.testing.assert_allclose(found.values, exact[:k], atol=1e-10 * exact[0])


def test_lanczos_itself_is_exact_and_its_residuals_bound_the_error():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()  # 123 parameters: ARPACK
    x, y = torch.randn(40, 6).double(), torch.randint(0, 3, (40,))
    exact = np.linalg.eigvalsh(exact_hessian(model, cross_entropy, x, y))[::-1]
    tight = curvature.top_eigenvalues(model, cross_entropy, x, y, k=4, tolerance=1e-12)
    np.testing.assert_allclose(tight.values, exact[:4], atol=1e-10)
    np.testing.assert_allclose(tight.vectors.T @ tight.vectors, np.eye(4), atol=1e-10)
    loose = curvature.top_eigenvalues(model, cross_entropy, x, y, k=4)
    np.testing.assert_allclose(loose.values, exact[:4], rtol=1e-7)
    assert (loose.residuals < 1e-3 * exact[0]).all()
    assert (np.abs(loose.values - exact[:4]) <= loose.residuals + 1e-12).all()


@pytest.mark.parametrize("size", [3, 100])
def test_largest_algebraic_not_largest_absolute(size):
    h = [-3.0, 0.5, 1.0] + [0.1] * (size - 3)
    found = curvature.top_eigenvalues(Spread(h), mean_output, torch.ones(4, 1), torch.ones(4), k=2)
    np.testing.assert_allclose(found.values, [1.0, 0.5], atol=1e-9)


@pytest.mark.parametrize("size", [3, 100])
def test_zero_hessian_gives_zeros(size):
    found = curvature.top_eigenvalues(Spread([0.0] * size), mean_output, torch.ones(4, 1), torch.ones(4), k=2)
    assert found.values.tolist() == [0.0, 0.0] and found.residuals.tolist() == [0.0, 0.0]


def test_gradient_descent_diverges_above_two_over_the_top_eigenvalue():
    x, y = (
        torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double(),
        torch.zeros(50, 1).double(),
    )
    model = nn.Linear(4, 1, bias=False).double()
    top = curvature.top_eigenvalues(model, mse_loss, x, y).values[0]
    for factor, grows in ((1.99, False), (2.01, True)):
        w = torch.ones(1, 4).double()
        hess = 2 * x.T @ x / 50
        for _ in range(2000):
            w = w - factor / top * w @ hess
        assert (float(w.norm()) > 2) == grows


def symmetric(size, seed, spectrum):
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
    return q @ np.diag(spectrum) @ q.T


def test_hutchinson_is_unbiased_with_the_stated_variance_and_its_interval_covers():
    a = symmetric(30, 0, np.linspace(-1, 3, 30))
    found = [curvature.hutchinson(lambda v: a @ v, 30, probes=20, seed=s) for s in range(2000)]
    values = np.array([t.estimate for t in found])
    variance = 2 * ((a**2).sum() - (np.diag(a) ** 2).sum()) / 20
    assert abs(values.mean() - np.trace(a)) < 3 * math.sqrt(variance / 2000)
    assert abs(values.var() / variance - 1) < 3 * math.sqrt(2 / 2000)
    cover = np.mean([t.low <= np.trace(a) <= t.high for t in found])
    assert 0.93 <= cover <= 0.97


def test_deflation_is_exact_on_low_rank_narrows_the_rest_and_still_covers():
    low = symmetric(40, 1, [50, 20, -10] + [0] * 37)
    exact = curvature.hutchinson(lambda v: low @ v, 40, probes=4, deflate=5, seed=0)
    assert exact.estimate == pytest.approx(60, abs=1e-9)
    a = symmetric(40, 2, np.r_[100, 60, 30, np.linspace(-1, 1, 37)])
    plain = [curvature.hutchinson(lambda v: a @ v, 40, probes=36, seed=s) for s in range(300)]  # as many products
    better = [curvature.hutchinson(lambda v: a @ v, 40, probes=20, deflate=8, seed=s) for s in range(300)]
    errors = [np.std([t.estimate - np.trace(a) for t in ts]) for ts in (plain, better)]
    assert errors[1] < errors[0] / 3
    assert np.mean([t.low <= np.trace(a) <= t.high for t in better]) > 0.92
    assert abs(np.mean([t.estimate for t in better]) - np.trace(a)) < 4 * errors[1] / math.sqrt(300)


def test_trace_of_a_model():
    model, loss, x, y = problem("mlp")
    exact = np.trace(exact_hessian(model, loss, x, y))
    found = curvature.trace(model, loss, x, y, probes=400, seed=3)
    assert found.low < exact < found.high and found.high - found.low < exact
    assert curvature.trace(model, loss, x, y, probes=5, deflate=44).estimate == pytest.approx(exact, abs=1e-10)


@pytest.mark.parametrize("kind", ["keskar", "adaptive"])
def test_sharpness_of_a_quadratic_is_its_corner(kind):
    h, w, radius = np.array([3.0, 1.0, 0.2]), np.array([0.0, 1.0, -2.0]), 0.01
    half = radius * (np.abs(w) + 1 if kind == "keskar" else np.abs(w))
    here = 0.5 * (h * w**2).sum()
    rise = 0.5 * (h * (np.abs(w) + half) ** 2).sum() - here
    found = curvature.sharpness(Spread(h, w), mean_output, torch.ones(4, 1), torch.ones(4), kind=kind, radius=radius)
    assert found.loss == pytest.approx(here, rel=1e-12)
    assert found.value == pytest.approx(100 * rise / (1 + here) if kind == "keskar" else rise, rel=1e-10)


@pytest.mark.parametrize("kind", ["keskar", "adaptive"])
@pytest.mark.parametrize("radius", [1e-3, 1e-2])
def test_sharpness_matches_brute_force_over_all_corners(kind, radius):
    # Least squares is convex: the maximum over a box sits on one of its 2^10 corners.
    gen = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 5, generator=gen).double(), torch.randn(20, 2, generator=gen).double()
    model = nn.Linear(5, 2, bias=False).double()
    best = torch.linalg.lstsq(x, y).solution.T.contiguous()
    model.weight.data = best
    half = radius * (best.abs() + 1 if kind == "keskar" else best.abs())
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=10))).double().view(-1, 2, 5)
    losses = ((torch.einsum("nd,ckd->cnk", x, best + corners * half) - y) ** 2).mean(dim=(1, 2))
    here = float(((x @ best.T - y) ** 2).mean())
    rise = float(losses.max()) - here
    found = curvature.sharpness(model, mse_loss, x, y, kind=kind, radius=radius, starts=20)
    assert found.value == pytest.approx(100 * rise / (1 + here) if kind == "keskar" else rise, rel=1e-6)


def test_only_adaptive_sharpness_ignores_a_rescaling_that_leaves_the_function_alone():
    torch.manual_seed(0)
    x, y = torch.randn(30, 4), torch.randint(0, 2, (30,))
    one = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    other = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    other.load_state_dict(one.state_dict())
    with torch.no_grad():  # relu(c z) = c relu(z) for c > 0
        other[0].weight.mul_(10), other[0].bias.mul_(10), other[2].weight.div_(10)
    torch.testing.assert_close(one(x.double()), other(x.double()))

    def pair(kind):
        return [curvature.sharpness(m, cross_entropy, x, y, kind=kind, radius=0.01).value for m in (one, other)]

    same, moved = pair("adaptive"), pair("keskar")
    assert same[0] == pytest.approx(same[1], rel=1e-6)
    assert not 0.8 < moved[0] / moved[1] < 1.25
    tops = [curvature.top_eigenvalues(m, cross_entropy, x, y).values[0] for m in (one, other)]
    assert not 0.5 < tops[0] / tops[1] < 2


def test_sharpness_is_reached_by_a_point_of_the_box_and_grows_with_it():
    model, loss, x, y = problem("mlp")
    values = [curvature.sharpness(model, loss, x, y, radius=r).value for r in (1e-4, 1e-3, 1e-2)]
    assert 0 < values[0] < values[1] < values[2]
    again = curvature.sharpness(model, loss, x, y, radius=1e-2)
    assert again.value == values[2] == pytest.approx(100 * (again.worst - again.loss) / (1 + again.loss))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6), st.integers(0, 2**31))
def test_line_between_quadratics(at, seed):
    rng = np.random.default_rng(seed)
    h, u, v = rng.standard_normal((3, 4))
    found = curvature.loss_along_line(Spread(h, u), Spread(h, v), mean_output, torch.ones(3, 1), torch.ones(3), at=at)
    exact = [0.5 * (h * ((1 - t) * u + t * v) ** 2).sum() for t in at]
    np.testing.assert_allclose(found.loss, exact, atol=1e-9)


def test_line_ends_are_the_two_losses_and_batch_norm_statistics_go_along():
    (a, loss, x, y), (b, *_) = problem("conv, batch norm in eval"), problem("conv, batch norm in eval")
    with torch.no_grad():
        for p in b.parameters():
            p.add_(0.3)
    b[1].running_mean.add_(1.0)
    a.eval(), b.eval()
    line = curvature.loss_along_line(a, b, loss, x, y)
    assert line.at.shape == line.loss.shape == (25,)
    assert a[0].weight.dtype == torch.float32
    for end, model in ((0, a), (-1, b)):
        assert line.loss[end] == pytest.approx(loss(model(x), y).item(), rel=1e-5)


MODEL, LOSS, X, Y = problem("mlp")


def bad(model=MODEL, loss=LOSS, x=X, y=Y, **kw):
    return (model, loss, x, y), kw


def spoiled(value):
    model, *_ = problem("mlp")
    model[0].weight.data[0, 0] = value
    return model


WEIGHTED = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0]).double())
BAD = [
    (bad(model=lambda x: x), "model"),
    (bad(model=nn.ReLU()), "model"),
    (bad(model=spoiled(float("nan"))), "model.0.weight"),
    (bad(model=nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))), "BatchNorm1d.*model.eval"),
    (
        bad(model=nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2, track_running_stats=False)).eval()),
        "BatchNorm1d",
    ),
    (bad(model=nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.5))), "Dropout.*model.eval"),
    (bad(loss="mse"), "loss"),
    (bad(loss=nn.CrossEntropyLoss(reduction="sum")), "loss.*mean over examples"),
    (bad(loss=nn.CrossEntropyLoss(reduction="none")), "loss"),
    (bad(loss=WEIGHTED), "loss.*class weights"),
    (bad(loss=lambda o, t: cross_entropy(o, t) * torch.rand(())), "loss.*random"),
    (bad(loss=lambda o, t: cross_entropy(o, t) / 0), "loss"),
    (bad(x=X[:0], y=Y[:0]), "x.shape.*at least one example"),
    (bad(y=Y[:5]), "len\\(y\\)"),
    (bad(x=X.numpy()), "x = 'ndarray'"),
    (bad(x=torch.full_like(X, float("inf"))), "x = inf"),
    (bad(micro_batch=0), "micro_batch = 0"),
]


@pytest.mark.parametrize(("call", "words"), BAD, ids=[w for _, w in BAD])
def test_every_instrument_refuses(call, words):
    args, kw = call
    one = args[:1] + args
    for measure, given_args in (
        (curvature.top_eigenvalues, args),
        (curvature.trace, args),
        (curvature.sharpness, args),
        (curvature.hessian, args),
        (curvature.loss_along_line, one),
    ):
        with pytest.raises(ValueError, match=words):
            measure(*given_args, **kw)


@pytest.mark.parametrize(
    ("measure", "kw", "words"),
    [
        (curvature.top_eigenvalues, {"k": 0}, "k = 0"),
        (curvature.top_eigenvalues, {"k": 45}, "k = 45.*at most 44"),
        (curvature.top_eigenvalues, {"tolerance": 0}, "tolerance"),
        (curvature.trace, {"probes": 1}, "probes = 1"),
        (curvature.trace, {"deflate": 45}, "deflate = 45"),
        (curvature.sharpness, {"kind": "sam"}, "kind = 'sam'"),
        (curvature.sharpness, {"radius": 0}, "radius = 0"),
        (curvature.sharpness, {"iterations": 0}, "iterations"),
        (curvature.hessian_vector, {"vector": [1.0]}, "vector.shape"),
        (curvature.hessian_vector, {"vector": [float("nan")] * 44}, "vector"),
    ],
)
def test_refuses_settings(measure, kw, words):
    with pytest.raises(ValueError, match=words):
        measure(MODEL, LOSS, X, Y, **kw)


def test_refuses_what_only_one_instrument_can_see():
    model = nn.Linear(1, 1, bias=False)
    x = y = torch.ones(3, 1)
    with pytest.raises(ValueError, match="second"):
        curvature.loss_along_line(model, nn.Linear(1, 1), mse_loss, x, y)
    with pytest.raises(ValueError, match="at"):
        curvature.loss_along_line(model, model, mse_loss, x, y, at=[])
    with pytest.raises(ValueError, match="loss = -.*keskar"):
        curvature.sharpness(Spread([1.0]), lambda o, t: (o - 1).mean(), x, y)
    with pytest.raises(ValueError, match="parameters = 5000"):
        curvature.hessian(nn.Linear(5000, 1, bias=False), mse_loss, torch.ones(1, 5000), y[:1])
    with pytest.raises(ValueError, match="H v"):  # |w|^1.5 has no second derivative at 0
        curvature.hessian(Spread([1.0]), lambda o, t: o.abs().pow(0.75).mean(), x, y)


def test_one_example_and_a_sum_over_it():
    line = nn.Linear(2, 1)
    x, y = torch.ones(1, 2), torch.zeros(1, 1)
    assert curvature.hessian(line, mse_loss, x, y).shape == (3, 3)
    with pytest.raises(ValueError, match="mean over examples"):
        curvature.hessian(line, nn.MSELoss(reduction="sum"), x, y)


@pytest.mark.gpu
def test_on_an_accelerator_as_on_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model, loss, x, y = problem("mlp")
    here = curvature.top_eigenvalues(model, loss, x, y, k=3, tolerance=1e-12).values
    there = curvature.top_eigenvalues(model.cuda(), loss, x.cuda(), y.cuda(), k=3, tolerance=1e-12).values
    np.testing.assert_allclose(there, here, atol=1e-10)
    assert curvature.sharpness(model, loss, x.cuda(), y.cuda()).value > 0
