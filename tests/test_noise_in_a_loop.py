"""Noise scales of layers, and of a loop that accumulates, against exact covariances and least squares."""

import math

import pytest
import torch
from torch.nn import functional as F

from batchlab import least_squares, noise


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.LayerNorm(7), torch.nn.Linear(7, 3))


def labelled(n=60):
    made = torch.Generator().manual_seed(1)
    return torch.randn(n, 5, generator=made), torch.randint(3, (n,), generator=made)


def test_each_layer_has_the_covariance_of_its_own_columns():
    model, (x, y) = network(), labelled()
    g = noise.per_example_gradients(model, F.cross_entropy, x, y).double()
    sizes = {name: sum(p.numel() for p in model[int(name)].parameters()) for name in ("0", "2", "3")}
    found = noise.by_layer(model, F.cross_entropy, x, y, population=len(x))
    assert list(found) == list(sizes)
    for (name, scale), columns in zip(found.items(), g.split(list(sizes.values()), dim=1), strict=True):
        norm, trace = columns.mean(0).square().sum(), columns.var(0, correction=0).sum()
        assert scale.squared_norm.estimate == pytest.approx(float(norm), rel=1e-4), name
        assert scale.trace.estimate == pytest.approx(float(trace), rel=1e-4), name
        assert scale.b_simple.estimate == pytest.approx(float(trace / norm), rel=1e-4), name
    whole = noise.noise_scale(model, F.cross_entropy, x, y, population=len(x))
    assert sum(s.squared_norm.estimate for s in found.values()) == pytest.approx(whole.squared_norm.estimate, rel=1e-4)


class Halves(torch.nn.Module):
    """x.w with the weights of the first and of the last two inputs in a layer each."""

    def __init__(self):
        super().__init__()
        self.first, self.last = (torch.nn.Linear(2, 1, bias=False) for _ in range(2))
        for half in (self.first, self.last):
            torch.nn.init.zeros_(half.weight)

    def forward(self, x):
        return self.first(x[:, :2]) + self.last(x[:, 2:])


def half_the_square(output, y):
    return (output - y).square().mean() / 2


def test_each_layer_of_least_squares_has_its_exact_noise_scale():
    h, w = torch.tensor([1.0, 0.5, 0.25, 0.1]), torch.tensor([1.0, -1.0, 2.0, 1.0])
    x = torch.randn(40_000, 4, generator=torch.Generator().manual_seed(2)) * h.sqrt()
    r = float(h @ w**2)
    found = noise.by_layer(Halves(), half_the_square, x, x @ w[:, None])
    for name, part in (("first", slice(0, 2)), ("last", slice(2, 4))):  # Sigma = r H + G G', G = -H w
        norm = float((h[part] * w[part]).square().sum())
        exact = 1 + r * float(h[part].sum()) / norm
        assert found[name].b_simple.low < exact < found[name].b_simple.high, name
        assert found[name].b_simple.estimate == pytest.approx(exact, rel=0.05), name
    whole = least_squares.noise_scales(h.numpy(), w.numpy())[0]
    weighted = sum(s.trace.estimate for s in found.values()) / sum(s.squared_norm.estimate for s in found.values())
    assert weighted == pytest.approx(whole, rel=0.05)


def test_layers_leave_the_model_as_it_was_and_skip_what_is_frozen():
    model, (x, y) = network(), labelled()
    model[0].requires_grad_(False)
    before = [p.clone() for p in model.parameters()]
    assert list(noise.by_layer(model, F.cross_entropy, x, y, population=len(x))) == ["2", "3"]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True, True, True]
    assert all(p.grad is None for p in model.parameters())


def test_layers_that_share_a_parameter_are_refused():
    model = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Tanh(), torch.nn.Linear(5, 5))
    model[2].weight = model[0].weight
    with pytest.raises(ValueError, match="layers 0, 2 share"):
        noise.by_layer(model, F.mse_loss, torch.randn(8, 5), torch.randn(8, 5))


def accumulate(watch, model, batches, loss, scale=1.0, clip=False):
    for x, y in batches:
        model.zero_grad()
        for xs, ys in zip(x.split(watch.micro_batch), y.split(watch.micro_batch), strict=True):
            (scale * loss(model(xs), ys) / watch.pieces).backward()
            watch.add()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        watch.step(scale)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_a_loop_finds_the_pairs_that_norm_pair_computes_anew(scale):
    model, (x, y) = network().double(), labelled()
    x = x.double()
    watch = noise.Accumulation(model, micro_batch=5, pieces=4)
    batches = [(x[i : i + 20], y[i : i + 20]) for i in (0, 20, 40)]
    accumulate(watch, model, batches, F.cross_entropy, scale)
    pairs = [noise.norm_pair(model, F.cross_entropy, *batch, micro_batch=5) for batch in batches]
    assert list(zip(watch.small, watch.big, strict=True)) == [pytest.approx(pair, rel=1e-10) for pair in pairs]


def test_a_loop_at_fixed_weights_finds_the_exact_noise_scale_of_least_squares():
    h, w = torch.tensor([1.0, 0.5, 0.25, 0.1]), torch.tensor([1.0, -1.0, 2.0, 1.0])
    made, model = torch.Generator().manual_seed(3), Halves()
    watch = noise.Accumulation(model, micro_batch=2, pieces=8)
    x = torch.randn(2000, 16, 4, generator=made) * h.sqrt()
    accumulate(watch, model, [(batch, batch @ w[:, None]) for batch in x], half_the_square)
    found, exact = watch.noise_scale().b_simple, least_squares.noise_scales(h.numpy(), w.numpy())[0]
    assert found.low < exact < found.high
    assert found.estimate == pytest.approx(exact, rel=0.05)
    assert watch.noise_scale(last=100).b_simple.estimate != found.estimate


def test_clipped_gradients_are_refused():
    model, batch = network(), labelled(20)
    watch = noise.Accumulation(model, micro_batch=10, pieces=2)
    with pytest.raises(ValueError, match="before clipping"):
        accumulate(watch, model, [batch], F.cross_entropy, clip=True)


def test_an_overflow_is_left_out_and_counted():
    model, batch = network(), labelled(20)
    watch = noise.Accumulation(model, micro_batch=10, pieces=2)
    accumulate(watch, model, [batch], lambda o, y: F.cross_entropy(o, y) * math.inf)
    accumulate(watch, model, [batch, batch], F.cross_entropy)
    assert (watch.skipped, len(watch.small)) == (1, 2)


def test_missing_and_surplus_pieces_are_refused():
    model, (x, y) = network(), labelled(20)
    watch = noise.Accumulation(model, micro_batch=10, pieces=2)
    with pytest.raises(ValueError, match=r"add\(\) after backward"):
        watch.add()
    F.cross_entropy(model(x), y).backward()
    watch.add()
    with pytest.raises(ValueError, match="pieces = 1"):
        watch.step()
    watch.add()
    with pytest.raises(ValueError, match="pieces = 3"):
        watch.add()


@pytest.mark.parametrize(
    ("change", "named"),
    [({"model": 1}, "model"), ({"micro_batch": 0}, "micro_batch"), ({"pieces": 1}, "pieces")],
)
def test_bad_arguments_are_named(change, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        noise.Accumulation(**{"model": network(), "micro_batch": 2, "pieces": 2, **change})


def test_a_scale_and_a_window_outside_their_range_are_named():
    model, batch = network(), labelled(20)
    watch = noise.Accumulation(model, micro_batch=10, pieces=2)
    accumulate(watch, model, [batch, batch], F.cross_entropy)
    with pytest.raises(ValueError, match="^last = 3"):
        watch.noise_scale(last=3)
    with pytest.raises(ValueError, match="^scale = 0"):
        accumulate(watch, model, [batch], F.cross_entropy, scale=0.0)
