"""How noisy a batch gradient is: per-example gradients, gradient noise scales, and what a batch's gradient points at.

Everywhere the loss is L(w) = (1/N) sum_i loss(model(x_i), y_i), a mean over examples, g_i (P,) is the gradient of
example i's own loss and w holds the parameters that require a gradient, flattened in the order of
``model.named_parameters()``. G is the mean of the g_i and Sigma their covariance:

    B_simple = tr Sigma / |G|^2        B_noise = tr(H Sigma) / (G' H G)        (McCandlish et al., 2018)

with H the Hessian. Gradients are those of the loss alone: before clipping, unscaled, without weight decay. Any
``torch.nn.Module`` on any device, in its own precision; it is never changed. Layers that tie the examples of a batch
together (BatchNorm on batch statistics) have no per-example gradient and are refused, and so is dropout: call
``model.eval()``.

Where the data cannot tell G from zero, the upper end of a noise scale's interval is infinite, and where the estimate of
|G|^2 falls below zero the estimate is NaN. Nothing is clamped.
"""

from batchlab.instruments.noise._accumulation import Accumulation
from batchlab.instruments.noise._distributed import Distributed
from batchlab.instruments.noise._gradients import batch_gradients, cosine_to_full, per_example_gradients
from batchlab.instruments.noise._layers import by_layer
from batchlab.instruments.noise._pairs import norm_pair, two_batch
from batchlab.instruments.noise._scales import NoiseScale, noise_scale

__all__ = [
    "Accumulation",
    "NoiseScale",
    "Distributed",
    "batch_gradients",
    "by_layer",
    "cosine_to_full",
    "noise_scale",
    "norm_pair",
    "per_example_gradients",
    "two_batch",
]
