"""What must hold before a run trains: that its data, model, loss, batch sizes and device fit together."""

import torch
from torch import nn
from torch.func import functional_call

from batchlab._check import fail
from batchlab.training.layers import fewest_normalised
from batchlab.training.schedules import constant
from batchlab.training.step import batches, built, loss_of, moved


def check(run, model=None):
    """Refuse a run whose parts do not fit together; return its model, untrained and on its device.

    ``model``, from an earlier check, spares building another: it serves every run that differs in batch size and
    learning rate only. Raises ValueError for a device the machine lacks; outputs of the wrong shape, (N, 1) against
    targets (N,) among them (they would broadcast to (N, N)); a loss that is no 0-dim tensor; BatchNorm with a batch of
    one example; checkpointing of a model that is not an ``nn.Sequential``.
    """
    if model is None:
        model = built(run)
    if not any(True for _ in model.parameters()):
        fail("model(seed)", type(model).__name__, "an nn.Module with parameters")
    _check_outputs(run, model, *moved(run, *(t[:2] for t in run.data.train)))
    _check_pieces(run, model)
    return model


@torch.no_grad()
def _check_outputs(run, model, x, y):
    outputs = functional_call(model.eval(), {name: b.clone() for name, b in model.named_buffers()}, (x,))
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
