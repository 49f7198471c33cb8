"""Networks that are a chain of linear layers, as the C kernel takes them (``lane/network.c``)."""

import ctypes
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from batchlab.engine import structures
from batchlab.engine.structures import address
from batchlab.training import models, optim

MAX_LAYERS = 16


class Layers(NamedTuple):
    """Linear layers; layer norms after all but the last, or none; whether tanh follows; dropouts, or none."""

    linear: list
    norms: list
    is_tanh: bool
    dropouts: list


def layers(model):
    """The ``Layers`` of a model that is such a chain, else None."""
    if type(model) is not nn.Sequential or structures.altered(model):
        return None
    linear = [m for m in model if type(m) is nn.Linear and m.bias is not None]
    norms = [m for m in model if _is_layer_norm(m)]
    activations = [m for m in model if type(m) in (nn.ReLU, nn.Tanh)]
    dropouts = [m for m in model if type(m) is models.Dropout]
    hidden = zip(linear, *([norms] if norms else []), activations, *([dropouts] if dropouts else []), strict=False)
    if [*(m for each in hidden for m in each), *linear[-1:]] != list(model) or not 0 < len(linear) <= MAX_LAYERS:
        return None
    if len({type(m) for m in activations}) > 1 or len({m.eps for m in norms}) > 1:
        return None
    if len(list(model.parameters())) < 2 * (len(linear) + len(norms)):  # a weight shared between layers
        return None
    is_tanh = nn.Tanh in map(type, activations)
    if len({m.rate for m in dropouts}) > 1 or (dropouts and is_tanh):  # whose slope is not that of what is left
        return None
    return Layers(linear, norms, is_tanh, dropouts)


def _is_layer_norm(m):
    """Over all features, with a gain and a shift for each and eps > 0; a ``GroupNorm`` of one group is one."""
    if type(m) is nn.GroupNorm:
        return m.num_groups == 1 and m.affine and m.eps >= structures.SMALLEST
    shaped = type(m) is nn.LayerNorm and len(m.normalized_shape) == 1 and m.eps >= structures.SMALLEST
    return shaped and m.weight is not None and m.bias is not None


def network(run, chain, lib):
    """A run's weights as the kernel wants them: per layer (inputs + 1, outputs rounded up to whole vectors), of the
    last layer the other way round; then per norm (2, outputs rounded up), gains and shifts. What its optimizer
    remembers starts from zero, the average from the weights."""
    linear, norms, is_tanh, dropouts = chain
    sizes = (linear[0].in_features, *(layer.out_features for layer in linear))
    sizes, matrices = (ctypes.c_int * len(sizes))(*sizes), []
    for layer in linear:
        w = np.hstack([layer.weight.detach().numpy(), layer.bias.detach().numpy()[:, None]])  # (outputs, inputs + 1)
        matrices.append(w if layer is linear[-1] else w.T)
    matrices += [torch.stack([norm.weight, norm.bias]).detach().numpy() for norm in norms]
    weights = [structures.padded(w, lib.vector_length()) for w in matrices]
    places, arrays = structures.kept(run, weights, optim.STATES[run.optimizer.name][0])
    scratch = structures.aligned(lib.scratch_floats(len(linear), bool(norms), sizes))
    draw = np.array([m.dropout_draw.item() for m in dropouts], np.int64)
    if dropouts:
        places |= {"draw": address(draw), "rate": dropouts[0].rate}
    made = structures.Chain(
        len(linear),
        is_tanh,
        norms[0].eps if norms else 0.0,
        ctypes.addressof(sizes),
        scratch=address(scratch),
        **places,
    )
    return structures.holding(made, sizes, *arrays, scratch, draw)
