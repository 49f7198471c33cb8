"""The pure pieces of one training step, shared by ``fit`` and by the lanes of a sweep.

``run`` is a ``Run``; ``params`` and ``buffers`` are dicts name -> tensor. Nothing is changed in place except
the buffers passed to ``mean_loss``, where BatchNorm in training mode updates its running statistics.
"""

from collections import OrderedDict
from contextlib import nullcontext

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from batchlab._check import fail
from batchlab.training import models
from batchlab.training.dataset import index_stream
from batchlab.training.layers import fewest_normalised
from batchlab.training.schedules import constant

FIRST_SCALE = (2.0**16, 0)  # float16 loss scaling: the scale, and the good steps since it last changed
SMALLEST_SCALE = 2.0**-14
MEASURED_AT_ONCE = 4096


def dtype_of(run):
    """The type of parameters and data: float32, or float64. Half precision is a matter of autocast."""
    return torch.float64 if run.precision == "float64" else torch.float32


def device_of(run):
    """The torch.device of a run; "auto" is CUDA, then MPS, then CPU. ValueError where the machine lacks it."""
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(d for d in have if have[d]) if run.device == "auto" else run.device
    if not have[name]:
        fail("device", name, "one this machine has: " + ", ".join(repr(d) for d in have if have[d]))
    if name == "mps" and run.precision == "float64":
        fail("precision", run.precision, "another precision, MPS has no float64; or device='cpu'")
    return torch.device(name)


def prepare(run):
    """Build the model and move everything to the device: (model, params, buffers, parts).

    ``parts`` maps "train", "val", "test" to (x, y). Raises ValueError where the parts of a run do not fit
    together: a device the machine lacks; outputs of the wrong shape, (N, 1) against targets (N,) among them
    (they would broadcast to (N, N)); a loss that is no 0-dim tensor; BatchNorm with a batch of one example;
    checkpointing of a model that is not an ``nn.Sequential``.
    """
    device, dtype = device_of(run), dtype_of(run)
    model = models.build(run.model, run.seed).to(device, dtype)
    params = {name: p.detach() for name, p in model.named_parameters()}
    buffers = {name: b.detach().clone() for name, b in model.named_buffers()}
    if not params:
        fail("model(seed)", type(model).__name__, "an nn.Module with parameters")
    parts = {}
    for part in ("train", "val", "test"):
        x, y = getattr(run.data, part)
        parts[part] = (_moved(x, device, dtype), _moved(y, device, dtype))
    _check_outputs(run, model, params, buffers, *(t[:2] for t in parts["train"]))
    _check_pieces(run, model)
    return model, params, buffers, parts


def _moved(tensor, device, dtype):
    return tensor.to(device, dtype if tensor.is_floating_point() else None)


@torch.no_grad()
def _check_outputs(run, model, params, buffers, x, y):
    model.eval()
    outputs = functional_call(model, (params, buffers), (x,))
    if not isinstance(outputs, torch.Tensor):
        fail("model output", type(outputs).__name__, "a tensor")
    got, want = tuple(outputs.shape[1:]), tuple(y.shape[1:])
    if run.data.classes is not None and run.loss == "cross_entropy":
        want = (*want, run.data.classes)
    # a loss of the reader's own may take other shapes, but none that broadcasts (N, 1) against (N,) to (N, N)
    free = callable(run.loss) and got[-1:] != (1,) and (*got, 1) != want
    if len(outputs) != len(x) or (got != want and not free):
        fail("model output shape", ("N", *got), f"{('N', *want)}, to go with targets {('N', *y.shape[1:])}")
    loss = loss_of(run, outputs, y)
    if not isinstance(loss, torch.Tensor) or loss.ndim != 0 or not loss.is_floating_point():
        fail("loss", tuple(getattr(loss, "shape", ())), "a 0-dim tensor, the mean over examples")


def _check_pieces(run, model):
    if run.checkpoint_segments > 1:
        if not isinstance(model, nn.Sequential):
            fail("checkpoint_segments", run.checkpoint_segments, "1, unless the model is an nn.Sequential")
        if run.checkpoint_segments > len(model):
            fail("checkpoint_segments", run.checkpoint_segments, f"at most the {len(model)} layers of the model")
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        for size in batch_sizes(run):
            piece = run.micro_batch or size
            if fewest_normalised(model, size % piece or piece) == 1:
                accepted = (
                    f"no batch or piece of one example, which BatchNorm cannot normalise, and {size} examples make"
                )
                fail("batch_size", run.batch_size, f"{accepted} one (try another size, or drop_last=True)")


def batch_sizes(run):
    """The set of batch sizes that a run will use, the ragged last batch of an epoch included."""
    sizes, examples = set(), len(run.data.train[0])
    steps = 0
    for index in batches(run, order="fixed" if run.order == "reshuffle" else run.order):
        sizes.add(len(index))
        steps += 1
        if isinstance(run.batch_schedule, constant) and steps > examples // run.batch_size:
            break
    return sizes


def size_at(run, examples):
    """The batch size after ``examples`` examples: batch_size times the schedule's multiplier, rounded to whole.

    >>> from types import SimpleNamespace
    >>> from batchlab import schedules
    >>> size_at(SimpleNamespace(batch_size=8, batch_schedule=schedules.stages(factors=(1, 4), at=(100,))), 100)
    32
    """
    return round(run.batch_size * run.batch_schedule(examples))


def learning_rate(run, examples):
    """The learning rate of the step taken after ``examples`` examples."""
    return float(run.lr * run.lr_schedule(examples, size_at(run, examples)))


def batches(run, seed=None, order=None):
    """Yield the indices of each step until the run's length is reached.

    int64 arrays ``(b,)``, or ``(lanes, b)`` where ``seed`` is a tuple of seeds; see ``dataset.index_stream``. ``order``
    stands in for the run's own.
    """
    examples, total = 0, len(run.data.train[0])
    seed, order = run.seed if seed is None else seed, order or run.order
    stream = index_stream(total, lambda seen: size_at(run, seen), seed, order, run.drop_last, run.epochs)
    for step, index in enumerate(stream):
        if step == run.steps or (run.examples is not None and examples >= run.examples):
            return
        yield index
        examples += index.shape[-1]


def forward(model, params, buffers, x, segments=1):
    """The model's outputs at ``params``; with segments > 1, activations inside all but the last are recomputed.

    Recomputing (Chen, Xu, Zhang & Guestrin 2016) trades one more forward pass for their memory.
    """
    if segments == 1:
        return functional_call(model, (params, buffers), (x,))
    layers = list(model.named_children())
    cuts = [len(layers) * i // segments for i in range(segments + 1)]
    for start, stop in zip(cuts[:-1], cuts[1:], strict=True):
        piece = nn.Sequential(OrderedDict(layers[start:stop]))
        names = {name for name, _ in layers[start:stop]}
        own = {k: v for k, v in {**params, **buffers}.items() if k.split(".")[0] in names}
        if stop < len(layers):
            x = checkpoint(functional_call, piece, own, (x,), use_reentrant=False)
        else:
            x = functional_call(piece, own, (x,))
    return x


def mean_loss(run, model, params, buffers, x, y):
    """The mean loss over the examples of a batch, a 0-dim tensor that can be differentiated by ``params``.

    "cross_entropy" averages over examples (and tokens), "mse" over examples and outputs.
    """
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(run.precision)
    with torch.autocast(x.device.type, half) if half else nullcontext():
        outputs = forward(model, params, buffers, x, run.checkpoint_segments)
    return loss_of(run, outputs.float() if half else outputs, y)


def loss_of(run, outputs, y):
    """The mean loss of given outputs, a 0-dim tensor."""
    if run.loss == "cross_entropy":
        return F.cross_entropy(outputs.flatten(0, -2), y.flatten())
    return F.mse_loss(outputs, y) if run.loss == "mse" else run.loss(outputs, y)


def gradient(run, model, params, buffers, x, y, scale=1.0):
    """Mean loss, its gradient, and the buffers afterwards, of one batch.

    With ``micro_batch`` the gradient is the sum over pieces of (their share of the examples) * (their mean
    gradient), which equals the whole batch's also where the last piece is smaller. ``scale`` multiplies the
    loss before differentiation and divides the gradient after it. ``l1`` adds l1 * sign(w) to the gradient.
    """
    model.train()
    params = {name: p.detach().requires_grad_() for name, p in params.items()}
    size = run.micro_batch or len(x)
    loss, grads = 0.0, None
    for xs, ys in zip(x.split(size), y.split(size), strict=True):
        share = len(xs) / len(x)
        buffers = models.next_draw({name: b.clone() for name, b in buffers.items()})
        part = share * mean_loss(run, model, params, buffers, xs, ys)
        kept = {name: b.clone() for name, b in buffers.items()} if run.checkpoint_segments > 1 else buffers
        parts = torch.autograd.grad(part * scale, list(params.values()), materialize_grads=True)
        buffers = kept  # recomputing a segment updates BatchNorm's statistics a second time: undo that
        grads = parts if grads is None else [g + p for g, p in zip(grads, parts, strict=True)]
        loss += part.item()
    grads = {name: g / scale if scale != 1 else g for name, g in zip(params, grads, strict=True)}
    if run.l1:
        grads = {name: g + run.l1 * params[name].detach().sign() for name, g in grads.items()}
    return loss, grads, buffers


def scalar(value, params):
    """A number as the 0-dim tensor that ``Optimizer.update`` takes, of the parameters' type and device."""
    p = next(iter(params.values()))
    return torch.tensor(value, dtype=p.dtype, device=p.device)


def has_diverged(loss, bound):
    """True where a batch loss is not finite, or above ``bound``. Takes floats and tensors.

    >>> has_diverged(float("nan"), 1e4), has_diverged(2.3, 1e4)
    (True, False)
    """
    within = loss <= bound  # also False for NaN
    return ~within if isinstance(loss, torch.Tensor) else not within


def rescale(run, scale, grads):
    """Dynamic loss scaling (Micikevicius et al. 2018): the next (scale, good steps in a row), and whether to step.

    Only for float16: an overflowing gradient skips the update and halves the scale; 2,000 good steps double it.
    """
    if run.precision != "float16":
        return scale, True
    value, good = scale
    if not all(torch.isfinite(g).all() for g in grads.values()):
        return (value / 2, 0), False
    return ((value * 2, 0) if good + 1 == 2000 else (value, good + 1)), True


def average(run, averaged, params):
    """The exponential moving average of the weights after an update; the weights themselves without ``ema``."""
    if run.ema is None:
        return params
    return {name: run.ema * a + (1 - run.ema) * params[name] for name, a in averaged.items()}


def due(run, before, examples):
    """Whether an evaluation is due: a multiple of ``evaluate_every`` lies in (before, examples].

    >>> from types import SimpleNamespace
    >>> [due(SimpleNamespace(evaluate_every=30), before, before + 20) for before in (0, 20, 40, 60)]
    [False, True, True, False]
    """
    every = run.evaluate_every or len(run.data.train[0])
    return examples // every > before // every


def meets(target, row):
    """Whether a row of the table meets the target: accuracy at least, or loss at most, the value.

    >>> meets(("val_accuracy", 0.9), {"val_accuracy": 0.91}), meets(("val_loss", 0.2), {"val_loss": 0.3})
    (True, False)
    """
    if target is None:
        return False
    metric, value = target
    return bool(row[metric] >= value if metric.endswith("accuracy") else row[metric] <= value)


@torch.no_grad()
def measure(run, model, params, buffers, x, y):
    """Mean loss and accuracy (None for regression) over a part, in evaluation mode and full precision."""
    model.eval()
    loss = right = 0.0
    for xs, ys in zip(x.split(MEASURED_AT_ONCE), y.split(MEASURED_AT_ONCE), strict=True):
        outputs = functional_call(model, (params, buffers), (xs,))
        share = len(xs) / len(x)
        loss += share * loss_of(run, outputs, ys).item()
        if run.data.classes is not None:
            right += share * (outputs.argmax(-1) == ys).float().mean().item()
    return loss, right if run.data.classes is not None else None


def measure_all(run, model, params, buffers, parts):
    """Every metric of ``metrics(run)``: a dict name -> float."""
    found = {}
    for part in run.evaluate:
        found[f"{part}_loss"], accuracy = measure(run, model, params, buffers, *parts[part])
        if accuracy is not None:
            found[f"{part}_accuracy"] = accuracy
    return found
