"""The optimisers against torch.optim and pytorch-optimizer, alone and as stacked lanes."""

import numpy as np
import pytest
import pytorch_optimizer
import torch
from torch import nn
from torch.func import vmap

from batchlab import optim
from batchlab.training import rules

STEPS = 50


class MuonAndAdamW:
    """How ``torch.optim.Muon`` is used: matrices by it, everything else by AdamW."""

    def __init__(self, params, lr, weight_decay=0.1, **settings):
        params = list(params)
        matrices, others = ([p for p in params if (p.ndim == 2) == wanted] for wanted in (True, False))
        muon = torch.optim.Muon(matrices, lr, weight_decay=weight_decay, **settings)
        self.both = muon, torch.optim.AdamW(others, lr, weight_decay=weight_decay)
        self.param_groups = [group for one in self.both for group in one.param_groups]

    def zero_grad(self):
        for one in self.both:
            one.zero_grad()

    def step(self):
        for one in self.both:
            one.step()


PAIRS = {
    "sgd": (optim.sgd(), lambda p, lr: torch.optim.SGD(p, lr)),
    "sgd with decay": (optim.sgd(weight_decay=0.1), lambda p, lr: torch.optim.SGD(p, lr, weight_decay=0.1)),
    "momentum": (
        optim.momentum(0.8, weight_decay=0.1),
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.8, weight_decay=0.1),
    ),
    "nesterov": (
        optim.nesterov(0.8, weight_decay=0.1),
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.8, weight_decay=0.1, nesterov=True),
    ),
    "adagrad": (
        optim.adagrad(weight_decay=0.1),
        lambda p, lr: torch.optim.Adagrad(p, lr, weight_decay=0.1),
    ),
    "rmsprop": (
        optim.rmsprop(0.95, weight_decay=0.1),
        lambda p, lr: torch.optim.RMSprop(p, lr, alpha=0.95, weight_decay=0.1),
    ),
    "adam": (optim.adam(), lambda p, lr: torch.optim.Adam(p, lr)),
    "adam with decay": (
        optim.adam((0.8, 0.99), weight_decay=0.1),
        lambda p, lr: torch.optim.Adam(p, lr, betas=(0.8, 0.99), weight_decay=0.1),
    ),
    "adamw": (
        optim.adamw((0.8, 0.99), weight_decay=0.1),
        lambda p, lr: torch.optim.AdamW(p, lr, betas=(0.8, 0.99), weight_decay=0.1),
    ),
    "adam without first moment": (
        optim.adam((0.0, 0.99)),
        lambda p, lr: torch.optim.Adam(p, lr, betas=(0.0, 0.99)),
    ),
    "lars": (
        optim.lars(0.8, weight_decay=0.1),
        lambda p, lr: pytorch_optimizer.LARS(p, lr, momentum=0.8, weight_decay=0.1, foreach=False),
    ),
    "lamb": (
        optim.lamb(weight_decay=0.1),
        lambda p, lr: pytorch_optimizer.Lamb(
            p, lr, weight_decay=0.1, weight_decouple=False, adam_debias=True, foreach=False
        ),
    ),
}
if hasattr(torch.optim, "Muon"):  # since torch 2.9
    rms = dict(nesterov=False, ns_steps=3, adjust_lr_fn="match_rms_adamw", weight_decay=0.02)
    PAIRS |= {
        "muon": (optim.muon(), MuonAndAdamW),
        "muon like adamw": (optim.muon(0.8, **rms), lambda p, lr: MuonAndAdamW(p, lr, momentum=0.8, **rms)),
    }


@pytest.fixture
def unrounded(monkeypatch):
    """torch's Muon takes its Newton-Schulz steps in bfloat16: let it keep the type of the weights, to compare."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)


def problem(dtype, seed=0, scale=1.0):
    """A small network with a layer of zeros (trust ratios), and its gradients on a batch that changes each step."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
        x, y = torch.randn(STEPS, 8, 4, dtype=dtype), torch.randn(STEPS, 8, 3, dtype=dtype)
    with torch.no_grad():
        model[0].weight.mul_(scale)
        model[2].bias.zero_()
    return model, x, y


def gradients(model, params, x, y):
    params = {k: p.detach().requires_grad_() for k, p in params.items()}
    loss = nn.functional.mse_loss(torch.func.functional_call(model, params, (x,)), y)
    return dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))


def ours(optimizer, model, x, y, rates):
    params = {k: p.detach().clone() for k, p in model.named_parameters()}
    state = optimizer.init(params)
    for t in range(STEPS):
        lr = torch.tensor(rates[t], dtype=x.dtype)
        params, state = optimizer.update(gradients(model, params, x[t], y[t]), state, params, lr)
    return params


def rates(base):
    return [base * (1 + t % 5) / 3 for t in range(STEPS)]


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", PAIRS)
def test_equals_the_library_over_50_steps_with_a_changing_rate(name, dtype, tolerance, unrounded):
    optimizer, reference = PAIRS[name]
    base = 0.5 if name == "lars" else 0.02
    if name.startswith("muon"):
        tolerance *= 10  # Newton-Schulz lifts small singular values, and their rounding with them, up to 3.4^5-fold
    model, x, y = problem(dtype)
    start = {k: p.detach().clone() for k, p in model.named_parameters()}
    found = ours(optimizer, model, x, y, rates(base))
    theirs = reference(model.parameters(), base)
    for t in range(STEPS):
        for group in theirs.param_groups:
            group["lr"] = rates(base)[t]
        theirs.zero_grad()
        nn.functional.mse_loss(model(x[t]), y[t]).backward()
        theirs.step()
    for k, p in model.named_parameters():
        assert (found[k] - p.detach()).abs().max() <= tolerance, k
        assert (found[k] - start[k]).abs().max() > 1e-3, f"{k} did not move: the comparison would show nothing"


def test_lamb_clamps_the_weight_norm_at_ten_like_the_library():
    model, x, y = problem(torch.float64, scale=50.0)
    assert torch.linalg.vector_norm(model[0].weight) > 10
    found = ours(optim.lamb(), model, x, y, rates(0.02))
    theirs = pytorch_optimizer.Lamb(model.parameters(), 0.02, weight_decouple=False, adam_debias=True, foreach=False)
    for t in range(STEPS):
        theirs.param_groups[0]["lr"] = rates(0.02)[t]
        theirs.zero_grad()
        nn.functional.mse_loss(model(x[t]), y[t]).backward()
        theirs.step()
    assert (found["0.weight"] - model[0].weight.detach()).abs().max() <= 1e-12


@pytest.mark.parametrize("name", PAIRS)
def test_stacked_lanes_equal_single_models(name):
    optimizer = PAIRS[name][0]
    model, x, y = problem(torch.float64)
    lanes = [ours(optimizer, problem(torch.float64, seed)[0], x, y, rates(lr)) for seed, lr in ((1, 0.01), (2, 0.03))]
    models = [problem(torch.float64, seed)[0] for seed in (1, 2)]
    params = {k: torch.stack([dict(m.named_parameters())[k].detach() for m in models]) for k in lanes[0]}
    state = vmap(optimizer.init)(params)
    for t in range(STEPS):
        each = [gradients(model, {k: p[i] for k, p in params.items()}, x[t], y[t]) for i in range(2)]
        grads = {k: torch.stack([g[k] for g in each]) for k in params}
        lr = torch.tensor([rates(0.01)[t], rates(0.03)[t]], dtype=torch.float64)
        params, state = vmap(optimizer.update)(grads, state, params, lr)
    for k in params:
        for i in range(2):
            assert (params[k][i] - lanes[i][k]).abs().max() < 1e-12


def test_update_changes_nothing_in_place():
    model, x, y = problem(torch.float64)
    params = {k: p.detach().clone() for k, p in model.named_parameters()}
    grads = gradients(model, params, x[0], y[0])
    for optimizer, _ in PAIRS.values():
        state = optimizer.init(params)
        before = [t.clone() for t in (*params.values(), *grads.values())]
        optimizer.update(grads, state, params, torch.tensor(0.1, dtype=torch.float64))
        assert all(a.equal(b) for a, b in zip(before, (*params.values(), *grads.values()), strict=True))
        assert all((t == 0).all() for v in state.values() for t in (v.values() if isinstance(v, dict) else [v]))


def test_decoupled_decay_shrinks_weights_by_lr_times_decay_and_coupled_does_not():
    w, g, lr = {"w": torch.tensor([2.0])}, {"w": torch.tensor([0.0])}, torch.tensor(0.1)
    decoupled, coupled = optim.adamw(weight_decay=0.5), optim.adam(weight_decay=0.5)
    assert decoupled.update(g, decoupled.init(w), w, lr)[0]["w"].item() == pytest.approx(2 * (1 - 0.1 * 0.5))
    # the decay is the whole gradient here, and Adam's first step is lr whatever the gradient's size
    assert coupled.update(g, coupled.init(w), w, lr)[0]["w"].item() == pytest.approx(2 - 0.1)


def test_lars_step_does_not_depend_on_the_scale_of_the_gradient():
    w, lr = {"w": torch.randn(3, 4, generator=torch.Generator().manual_seed(0))}, torch.tensor(1.0)
    optimizer = optim.lars()
    small, large = ({"w": s * torch.ones(3, 4)} for s in (1.0, 1000.0))
    a, b = (optimizer.update(g, optimizer.init(w), w, lr)[0]["w"] for g in (small, large))
    assert torch.allclose(a, b, atol=1e-7)
    assert torch.linalg.vector_norm(a - w["w"]).item() == pytest.approx(
        0.001 * torch.linalg.vector_norm(w["w"]).item(), rel=1e-4
    )


# --- Muon --------------------------------------------------------------------------------------------------------


def a_step(optimizer, params, grads, lr=0.1):
    lr = torch.tensor(lr, dtype=torch.float64)
    return optimizer.update(grads, optimizer.init(params), params, lr)[0]


def random(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon since 2.9")
def test_a_step_of_muon_is_torchs_within_the_rounding_of_bfloat16():
    w, g = random(30, 20), random(30, 20, seed=1)
    theirs = w.clone().requires_grad_()
    theirs.grad = g
    torch.optim.Muon([theirs], 0.1).step()
    moved, wanted = a_step(optim.muon(), {"w": w}, {"w": g})["w"] - w, theirs.detach() - w
    assert torch.linalg.norm(moved - wanted) < 0.05 * torch.linalg.norm(wanted)  # 3 digits, five times over


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (6, 6), (1, 5), (5, 1)])
@pytest.mark.parametrize("ns_steps", [1, 5])
def test_newton_schulz_maps_singular_values_by_its_polynomial(shape, ns_steps):
    matrix = random(*shape)
    u, s, v = (torch.from_numpy(a) for a in np.linalg.svd(matrix.numpy(), full_matrices=False))
    s = s / s.square().sum().sqrt()
    for _ in range(ns_steps):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert (rules.orthogonalized(matrix, ns_steps) - u @ s.diag() @ v).abs().max() < 1e-12
    assert rules.orthogonalized(torch.zeros(shape), ns_steps).equal(torch.zeros(shape))


def test_muon_does_not_see_the_scale_of_a_gradient():
    w, g = {"w": random(4, 6)}, random(4, 6, seed=1)
    small, large = (a_step(optim.muon(), w, {"w": scale * g})["w"] for scale in (1.0, 1000.0))
    assert (small - large).abs().max() < 1e-12


def test_muon_takes_filters_as_matrices_and_leaves_what_is_named_to_adamw():
    params = {"0.weight": random(9, 1, 2, 2), "0.bias": random(9), "4.weight": random(7, 3), "4.bias": random(7)}
    grads = {k: random(*p.shape, seed=1) for k, p in params.items()}
    found = a_step(optim.muon(weight_decay=0.2, adamw=("4",)), params, grads)
    assert list(found) == list(params)
    flat = a_step(optim.muon(weight_decay=0.2), *({"w": t["0.weight"].flatten(1)} for t in (params, grads)))
    assert found["0.weight"].flatten(1).equal(flat["w"])
    by_adamw = a_step(optim.adamw(weight_decay=0.2), params, grads)
    assert all(found[k].equal(by_adamw[k]) for k in ("0.bias", "4.weight", "4.bias"))
    assert set(optim.muon(adamw=("4.weight",)).init(params)["v"]) == {"0.bias", "4.weight", "4.bias"}
    with pytest.raises(ValueError, match="adamw = '5'.*0.weight"):
        optim.muon(adamw=("4", "5")).init(params)
    with pytest.raises(ValueError, match="adamw = '4.w'"):
        optim.muon(adamw=("4.w",)).init(params)


# --- Bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: optim.muon(momentum=1.0),
        lambda: optim.muon(nesterov=1),
        lambda: optim.muon(ns_steps=0),
        lambda: optim.muon(ns_steps=5.0),
        lambda: optim.muon(ns_steps=100),
        lambda: optim.muon(adjust_lr_fn="rms"),
        lambda: optim.muon(weight_decay=-0.1),
        lambda: optim.muon(adamw="0"),
        lambda: optim.muon(adamw=(0,)),
        lambda: optim.sgd(weight_decay=-1),
        lambda: optim.sgd(weight_decay=float("nan")),
        lambda: optim.momentum(1.0),
        lambda: optim.momentum("0.9"),
        lambda: optim.momentum(True),
        lambda: optim.nesterov(-0.1),
        lambda: optim.adam(betas=0.9),
        lambda: optim.adam(betas=(0.9, 1.0)),
        lambda: optim.adam(eps=0),
        lambda: optim.rmsprop(alpha=2),
        lambda: optim.adagrad(eps=-1),
        lambda: optim.lars(trust=0),
        lambda: optim.lamb(betas=(0.9,)),
    ],
)
def test_bad_hyper_parameters_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()


def test_repr_and_hash_are_stable():
    assert repr(optim.adamw()) == "adamw(betas=(0.9, 0.999), eps=1e-08, weight_decay=0.01)"
    assert optim.adam() == optim.adam() and hash(optim.adam()) == hash(optim.adam())
    assert optim.momentum(0.9) != optim.momentum(0.8)
