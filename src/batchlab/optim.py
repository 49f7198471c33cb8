"""Optimisers as pure functions: ``init(params) -> state``, ``update(grads, state, params, lr) -> (params, state)``.

One model at a time: ``params`` and ``grads`` are dicts name -> tensor, the state a dict of tensors and of dicts of
tensors, ``lr`` a 0-dim tensor. Nothing is changed in place, so ``torch.func.vmap`` can stack lanes of it.
"""

from dataclasses import dataclass

import torch

from batchlab._check import number


@dataclass(frozen=True, repr=False)
class Optimizer:
    """An update rule and its hyper-parameters. Hashable, with a stable repr.

    >>> momentum(0.9)
    momentum(momentum=0.9, weight_decay=0.0)
    """

    name: str
    settings: tuple = ()

    def init(self, params):
        """The state before the first step: a dict of tensors and of dicts of tensors."""
        return RULES[self.name][0](params)

    def update(self, grads, state, params, lr):
        """One step: the new parameters and the new state."""
        return RULES[self.name][1](grads, state, params, lr, **dict(self.settings))

    def __repr__(self):
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.settings)})"


def sgd(*, weight_decay=0.0):
    """w <- w - lr * (g + weight_decay * w)."""
    return Optimizer("sgd", (("weight_decay", number("weight_decay", weight_decay, at_least=0)),))


def momentum(momentum=0.9, *, weight_decay=0.0):
    """Heavy ball as in torch: m <- momentum * m + g, w <- w - lr * m."""
    settings = (
        ("momentum", number("momentum", momentum, at_least=0, below=1)),
        ("weight_decay", float(weight_decay)),
    )
    return Optimizer("momentum", settings)


def adam(betas=(0.9, 0.999), *, eps=1e-8, weight_decay=0.0):
    """Adam (Kingma & Ba 2015)."""
    return Optimizer("adam", (("betas", tuple(betas)), ("eps", eps), ("weight_decay", weight_decay)))


def _zeros(params):
    return {name: torch.zeros_like(p) for name, p in params.items()}


def _decayed(grads, params, weight_decay):
    return {name: g + weight_decay * params[name] for name, g in grads.items()} if weight_decay else grads


def _sgd(grads, state, params, lr, weight_decay):
    grads = _decayed(grads, params, weight_decay)
    return {name: p - lr * grads[name] for name, p in params.items()}, state


def _momentum(grads, state, params, lr, momentum, weight_decay):
    grads = _decayed(grads, params, weight_decay)
    m = {name: momentum * state["m"][name] + g for name, g in grads.items()}
    return {name: p - lr * m[name] for name, p in params.items()}, {"m": m}


def _adam(grads, state, params, lr, betas, eps, weight_decay):
    grads = _decayed(grads, params, weight_decay)
    b1, b2 = betas
    t = state["t"] + 1
    m = {name: b1 * state["m"][name] + (1 - b1) * g for name, g in grads.items()}
    v = {name: b2 * state["v"][name] + (1 - b2) * g * g for name, g in grads.items()}
    c1, c2 = 1 - b1**t, 1 - b2**t
    new = {name: p - lr * (m[name] / c1) / ((v[name] / c2).sqrt() + eps) for name, p in params.items()}
    return new, {"m": m, "v": v, "t": t}


def _step_count(params):
    p = next(iter(params.values()))
    return torch.zeros((), dtype=p.dtype, device=p.device)


RULES = {
    "sgd": (lambda params: {}, _sgd),
    "momentum": (lambda params: {"m": _zeros(params)}, _momentum),
    "adam": (lambda params: {"m": _zeros(params), "v": _zeros(params), "t": _step_count(params)}, _adam),
}
