"""Noise scales of the parts of a model."""

import copy

from batchlab._check import fail
from batchlab.instruments._probe import check_model
from batchlab.instruments.noise._scales import noise_scale


def by_layer(model, loss, x, y, **options):
    """Measure |G|^2, tr Sigma and B_simple of each layer's own parameters: a dict of ``NoiseScale``, a layer each.

    A layer is a module that holds parameters itself (weight and bias together), under its name in
    ``model.named_modules()``; only parameters that require a gradient count. |G|^2 and tr Sigma of the layers add up
    to those of the whole model, and B_simple of the whole is the mean of the layers', weighted by their |G|^2. Data,
    ``options`` and errors are those of ``noise_scale``; it goes through the data once for each layer. The model is not
    changed: a copy is.

    >>> import torch
    >>> torch.manual_seed(0) and None
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    >>> x, y = torch.randn(50, 3), torch.randn(50, 1)
    >>> layers = by_layer(model, torch.nn.functional.mse_loss, x, y, population=50)
    >>> whole = noise_scale(model, torch.nn.functional.mse_loss, x, y, population=50)
    >>> list(layers), round(sum(s.trace.estimate for s in layers.values()) / whole.trace.estimate, 5)
    (['0', '2'], 1.0)
    """
    check_model(model, loss)
    model = copy.deepcopy(model)
    layers = {name: [p for p in m.parameters(recurse=False) if p.requires_grad] for name, m in model.named_modules()}
    layers = {name: own for name, own in layers.items() if own}
    shared = [name for name, own in layers.items() if any(p is q for other in layers if other != name
              for p in own for q in layers[other])]  # fmt: skip
    if shared:
        fail("model", f"parameters that the layers {', '.join(shared)} share", "layers with parameters of their own")
    found = {}
    for name, own in layers.items():
        for p in model.parameters():
            p.requires_grad_(any(p is q for q in own))
        found[name] = noise_scale(model, loss, x, y, **options)
    return found
