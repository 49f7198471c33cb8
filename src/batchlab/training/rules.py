"""What each optimiser does in a step: (grads, state, params, lr, **settings) -> (new params, new state).

What the rules are, in formulas, is said where a user names them: in ``optim``.
"""

import math

import torch

from batchlab._check import fail


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


def of_adamw(params, named):
    """The names in ``params`` that Muon leaves to AdamW: vectors, and what ``named`` names, layers or tensors."""
    for name in named:
        if not any(_names(name, k) for k in params):
            fail("adamw", name, f"names of layers or tensors among {tuple(params)}")
    return [k for k, w in params.items() if w.ndim < 2 or any(_names(name, k) for name in named)]


def _names(name, key):
    return key == name or key.startswith(f"{name}.")


def _muon(grads, state, params, lr, momentum, nesterov, ns_steps, adjust_lr_fn, weight_decay, adamw):
    def matrices(tree):
        return {k: t for k, t in tree.items() if k not in state["v"]}

    def others(tree):
        return {k: t for k, t in tree.items() if k in state["v"]}

    def stepped(w, u):
        matrix = w.flatten(1)
        rows, columns = matrix.shape
        ratio = 0.2 * max(rows, columns) ** 0.5 if adjust_lr_fn == "match_rms_adamw" else max(1, rows / columns) ** 0.5
        return w * (1 - lr * weight_decay) - lr * ratio * orthogonalized(u.flatten(1), ns_steps).reshape(w.shape)

    def blended(m, g):
        return momentum * m + (1 - momentum) * g

    rest, kept = _adamw(
        others(grads), {**state, "m": others(state["m"])}, others(params), lr, (0.9, 0.999), 1e-8, weight_decay
    )
    g = matrices(grads)
    m = _map(blended, matrices(state["m"]), g)
    new = {**rest, **_map(stepped, matrices(params), _map(blended, m, g) if nesterov else m)}
    m = {**kept["m"], **m}
    return {k: new[k] for k in params}, {**kept, "m": {k: m[k] for k in params}}


def orthogonalized(matrix, ns_steps):
    """Nearly U V' of a matrix U S V' (rows, columns): the larger singular values come to between about 0.7 and 1.2.

    ``ns_steps`` times X <- a X + (b A + c A A) X with A = X X' (Newton-Schulz; a, b, c of Jordan et al. 2024), from the
    matrix over its Frobenius norm. Each maps a singular value s to a s + b s^3 + c s^5: a small one grows 3.4-fold.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / torch.linalg.vector_norm(x).clamp(min=1e-7)
    for _ in range(ns_steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


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
    "muon": _muon,
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
    "muon": (("m", "v"), True),
}
