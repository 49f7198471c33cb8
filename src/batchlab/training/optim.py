"""Optimisers as pure functions of one model.

``optimizer.init(params) -> state`` and ``optimizer.update(grads, state, params, lr) -> (params, state)``. ``params``
and ``grads`` are dicts name -> tensor, ``lr`` is a 0-dim tensor, and the state is a dict of tensors and of dicts
of tensors. Nothing is changed in place and no rule looks at values to choose its path, so ``torch.func.vmap`` can
stack lanes of it: norms are then taken in each lane apart.

In the formulas g is the gradient of the mean loss, w one parameter tensor, and operations are elementwise.
"""

import math
from dataclasses import dataclass

import torch

from batchlab._check import fail, number


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


def _settings(**given):
    for name, value in given.items():
        if name == "betas":
            if not isinstance(value, tuple) or len(value) != 2:
                fail("betas", value, "a pair (b1, b2)")
            given[name] = tuple(number("betas", b, at_least=0, below=1) for b in value)
        elif name in ("momentum", "alpha"):
            given[name] = number(name, value, at_least=0, below=1)
        elif name in ("eps", "trust"):
            given[name] = number(name, value, above=0)
        else:
            given[name] = number(name, value, at_least=0)
    return tuple(given.items())


# ---------------------------------------------------------------- the rules


def _map(rule, *trees):
    """``rule`` on the tensors of the same name in each dict."""
    return {name: rule(*(tree[name] for tree in trees)) for name in trees[0]}


def _decayed(grads, params, weight_decay):
    return _map(lambda g, w: g + weight_decay * w, grads, params) if weight_decay else grads


def _sgd(grads, state, params, lr, weight_decay):
    g = _decayed(grads, params, weight_decay)
    return _map(lambda w, g: w - lr * g, params, g), state


def _momentum(grads, state, params, lr, momentum, weight_decay):
    g = _decayed(grads, params, weight_decay)
    m = _map(lambda m, g: momentum * m + g, state["m"], g)
    return _map(lambda w, m: w - lr * m, params, m), {"m": m}


def _nesterov(grads, state, params, lr, momentum, weight_decay):
    g = _decayed(grads, params, weight_decay)
    m = _map(lambda m, g: momentum * m + g, state["m"], g)
    return _map(lambda w, g, m: w - lr * (g + momentum * m), params, g, m), {"m": m}


def _adagrad(grads, state, params, lr, eps, weight_decay):
    g = _decayed(grads, params, weight_decay)
    v = _map(lambda v, g: v + g * g, state["v"], g)
    return _map(lambda w, g, v: w - lr * g / (v.sqrt() + eps), params, g, v), {"v": v}


def _rmsprop(grads, state, params, lr, alpha, eps, weight_decay):
    g = _decayed(grads, params, weight_decay)
    v = _map(lambda v, g: alpha * v + (1 - alpha) * g * g, state["v"], g)
    return _map(lambda w, g, v: w - lr * g / (v.sqrt() + eps), params, g, v), {"v": v}


def _moments(grads, state, betas):
    b1, b2 = betas
    m = _map(lambda m, g: b1 * m + (1 - b1) * g, state["m"], grads)
    v = _map(lambda v, g: b2 * v + (1 - b2) * g * g, state["v"], grads)
    return m, v


def _bias(beta, steps):
    """1 - beta**steps, without the cancellation that costs float32 four digits at the first steps."""
    return -torch.expm1(steps * math.log(beta)) if beta > 0 else torch.ones_like(steps)


def _adam(grads, state, params, lr, betas, eps, weight_decay):
    m, v = _moments(_decayed(grads, params, weight_decay), state, betas)
    steps = state["steps"] + 1
    c1, c2 = _bias(betas[0], steps), _bias(betas[1], steps)
    new = _map(lambda w, m, v: w - lr * (m / c1) / ((v / c2).sqrt() + eps), params, m, v)
    return new, {"m": m, "v": v, "steps": steps}


def _adamw(grads, state, params, lr, betas, eps, weight_decay):
    return _adam(grads, state, _map(lambda w: w * (1 - lr * weight_decay), params), lr, betas, eps, 0.0)


def _lars(grads, state, params, lr, momentum, trust, weight_decay):
    def rescaled(g, w):
        if w.ndim < 2:
            return g
        length, below = torch.linalg.vector_norm(w), torch.linalg.vector_norm(g)
        below = below + weight_decay * length
        ratio = torch.where((length > 0) & (below > 0), trust * length / below, 1.0)
        return ratio * (g + weight_decay * w)

    return _momentum(_map(rescaled, grads, params), state, params, lr, momentum, 0.0)


def _lamb(grads, state, params, lr, betas, eps, weight_decay):
    def stepped(w, m, v):
        u = m / (v.sqrt() + eps) + weight_decay * w
        length, below = torch.linalg.vector_norm(w).clamp(max=10.0), torch.linalg.vector_norm(u)
        ratio = torch.where((length > 0) & (below > 0), length / (below + eps), 1.0)
        return w - lr * ratio * u

    m, v = _moments(grads, state, betas)
    return _map(stepped, params, m, v), {"m": m, "v": v}


RULES = {
    "sgd": _sgd,
    "momentum": _momentum,
    "nesterov": _nesterov,
    "adagrad": _adagrad,
    "rmsprop": _rmsprop,
    "adam": _adam,
    "adamw": _adamw,
    "lars": _lars,
    "lamb": _lamb,
}
STATES = {  # the moments each rule keeps, and whether it counts steps
    "sgd": ((), False),
    "momentum": (("m",), False),
    "nesterov": (("m",), False),
    "adagrad": (("v",), False),
    "rmsprop": (("v",), False),
    "adam": (("m", "v"), True),
    "adamw": (("m", "v"), True),
    "lars": (("m",), False),
    "lamb": (("m", "v"), False),
}
