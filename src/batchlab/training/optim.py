"""Optimisers as pure functions of one model.

``optimizer.init(params) -> state`` and ``optimizer.update(grads, state, params, lr) -> (params, state)``. ``params``
and ``grads`` are dicts name -> tensor, ``lr`` is a 0-dim tensor, and the state is a dict of tensors and of dicts
of tensors. Nothing is changed in place and no rule looks at values to choose its path, so ``torch.func.vmap`` can
stack lanes of it: norms are then taken in each lane apart.

In the formulas g is the gradient of the mean loss, w one parameter tensor, and operations are elementwise.
"""

from dataclasses import dataclass

import torch

from batchlab._check import count, fail, number, one_of
from batchlab.training.rules import RULES, STATES, of_adamw


@dataclass(frozen=True, repr=False)
class Optimizer:
    """An update rule and its hyper-parameters. Hashable, with a stable repr.

    >>> momentum(0.9)
    momentum(momentum=0.9, weight_decay=0.0)
    >>> w, g, lr = {"w": torch.ones(2)}, {"w": torch.full((2,), 0.5)}, torch.tensor(0.1)
    >>> new, state = sgd().update(g, sgd().init(w), w, lr)
    >>> new["w"]
    tensor([0.9500, 0.9500])
    """

    name: str
    settings: tuple = ()

    def init(self, params):
        """The state before the first step: zeros shaped like ``params``, and a step count where the rule has one."""
        moments, counts = STATES[self.name]
        state = {name: {k: torch.zeros_like(p) for k, p in params.items()} for name in moments}
        if self.name == "muon":  # a second moment for AdamW's share only
            state["v"] = {k: state["v"][k] for k in of_adamw(params, dict(self.settings)["adamw"])}
        if counts:
            p = next(iter(params.values()))
            state["steps"] = torch.zeros((), dtype=p.dtype, device=p.device)
        return state

    def update(self, grads, state, params, lr):
        """One step: (new params, new state)."""
        return RULES[self.name](grads, state, params, lr, **dict(self.settings))

    def __repr__(self):
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.settings)})"


# ---------------------------------------------------------------- the optimisers, with torch's own defaults


def sgd(*, weight_decay=0.0):
    """Gradient descent (Robbins & Monro 1951): w <- w - lr (g + weight_decay w). Equals ``torch.optim.SGD``."""
    return Optimizer("sgd", _settings(weight_decay=weight_decay))


def momentum(momentum=0.9, *, weight_decay=0.0):
    """Heavy ball (Polyak 1964): m <- momentum m + g + weight_decay w;  w <- w - lr m. Equals ``torch.optim.SGD``.

    A constant gradient moves w by lr / (1 - momentum) a step in the end: compare optimisers at equal
    lr / (1 - momentum), not at equal lr.
    """
    return Optimizer("momentum", _settings(momentum=momentum, weight_decay=weight_decay))


def nesterov(momentum=0.9, *, weight_decay=0.0):
    """Look-ahead momentum as ``torch.optim.SGD(nesterov=True)`` has it: m as above;  w <- w - lr (g + momentum m).

    g includes weight_decay w. Not Nesterov's (1983) scheme of steps and extrapolations itself, but its form for
    a fixed momentum in the variable that torch stores.
    """
    return Optimizer("nesterov", _settings(momentum=momentum, weight_decay=weight_decay))


def adagrad(*, eps=1e-10, weight_decay=0.0):
    """Adagrad (Duchi, Hazan & Singer 2011): v <- v + g^2;  w <- w - lr g / (sqrt(v) + eps)."""
    return Optimizer("adagrad", _settings(eps=eps, weight_decay=weight_decay))


def rmsprop(alpha=0.99, *, eps=1e-8, weight_decay=0.0):
    """RMSProp (Tieleman & Hinton 2012): v <- alpha v + (1 - alpha) g^2;  w <- w - lr g / (sqrt(v) + eps)."""
    return Optimizer("rmsprop", _settings(alpha=alpha, eps=eps, weight_decay=weight_decay))


def adam(betas=(0.9, 0.999), *, eps=1e-8, weight_decay=0.0):
    """Adam (Kingma & Ba 2015); weight decay is coupled: it joins the gradient and is divided by sqrt(v) with it.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  w <- w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    """
    return Optimizer("adam", _settings(betas=betas, eps=eps, weight_decay=weight_decay))


def adamw(betas=(0.9, 0.999), *, eps=1e-8, weight_decay=0.01):
    """AdamW (Loshchilov & Hutter 2019): w <- w (1 - lr weight_decay), then Adam's step with the bare gradient.

    Decoupled from the gradient, but, as in torch, not from lr: halving lr halves the decay of a step.
    """
    return Optimizer("adamw", _settings(betas=betas, eps=eps, weight_decay=weight_decay))


def lars(momentum=0.9, *, trust=0.001, weight_decay=0.0):
    """LARS (You, Gitman & Ginsburg 2017): momentum on gradients rescaled for each layer.

    r = trust |w| / (|g| + weight_decay |w|);  m <- momentum m + r (g + weight_decay w);  w <- w - lr m

    The variant of ``pytorch_optimizer.LARS`` (4.1): weight decay inside the trust ratio; lr outside the momentum;
    r = 1 where either norm is 0; vectors (biases, norm gains) get plain momentum, without decay.
    """
    return Optimizer("lars", _settings(momentum=momentum, trust=trust, weight_decay=weight_decay))


def lamb(betas=(0.9, 0.999), *, eps=1e-6, weight_decay=0.0):
    """LAMB (You et al. 2020): Adam's direction, rescaled for each layer to a length of min(|w|, 10).

    u = m / (sqrt(v) + eps) + weight_decay w;  w <- w - lr u min(|w|, 10) / (|u| + eps)

    The variant of ``pytorch_optimizer.Lamb(weight_decouple=False, adam_debias=True)`` (4.1): no bias correction
    of m or v; weight decay inside the trust ratio; the ratio is 1 where either norm is 0; the global gradient
    norm is not clipped. (That library's default divides the step by 1 - b1^t: ten times longer at first.)
    """
    return Optimizer("lamb", _settings(betas=betas, eps=eps, weight_decay=weight_decay))


def muon(momentum=0.95, *, nesterov=True, ns_steps=5, adjust_lr_fn=None, weight_decay=0.1, adamw=()):
    """Muon (Jordan et al. 2024): momentum whose matrices are made nearly orthogonal; all else by AdamW.

    m <- momentum m + (1 - momentum) g;  u = momentum m + (1 - momentum) g if ``nesterov``, else m
    w <- w (1 - lr weight_decay) - lr r O(u), O(u) nearly U V' of u = U S V' after ``ns_steps`` Newton-Schulz steps

    ``adjust_lr_fn``: None or "original", r = sqrt(max(1, rows / columns)); "match_rms_adamw", r = 0.2 sqrt(max(rows,
    columns)), with which an entry moves about as far as under AdamW, so that one lr suits both (Liu et al. 2025).

    Tensors of more than two dimensions count as matrices (first dimension, all others). Vectors (biases, norm gains)
    get AdamW with its defaults, the same lr and weight_decay; so do the layers and tensors named in ``adamw``, by
    their names in the model: Muon is meant for hidden layers, so name the embeddings and the output layer, as in
    ``muon(adamw=("0", "4"))`` for ``models.transformer`` with two blocks. ``init`` raises ValueError on a name that
    the model does not have.

    Equals ``torch.optim.Muon`` (2.9 and later; matrices only) but for the rounding of its Newton-Schulz steps, which
    it takes in bfloat16 and this in the weights' own type.
    """
    return Optimizer(
        "muon",
        _settings(
            momentum=momentum, nesterov=nesterov, ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn,
            weight_decay=weight_decay, adamw=adamw,
        ),
    )  # fmt: skip


def _settings(**given):
    for name, value in given.items():
        if name == "betas":
            if not isinstance(value, tuple) or len(value) != 2:
                fail("betas", value, "a pair (b1, b2)")
            given[name] = tuple(number("betas", b, at_least=0, below=1) for b in value)
        elif name in ("momentum", "alpha"):
            given[name] = number(name, value, at_least=0, below=1)
        elif name == "nesterov":
            one_of(name, value, (True, False))
        elif name == "ns_steps":
            given[name] = count(name, value, at_most=99)
        elif name == "adjust_lr_fn":
            one_of(name, value, (None, "original", "match_rms_adamw"))
        elif name == "adamw":
            if not isinstance(value, tuple) or not all(isinstance(n, str) for n in value):
                fail(name, value, "a tuple of names of layers or tensors")
        elif name in ("eps", "trust"):
            given[name] = number(name, value, above=0)
        else:
            given[name] = number(name, value, at_least=0)
    return tuple(given.items())
