"""One training step whose memory is looked at."""

from contextlib import contextmanager, nullcontext

import torch

from batchlab._check import one_of
from batchlab.instruments._probe import check_loss, check_model, check_optimizer, ignored, pieces, trained


def check_step(model, loss, optimizer, autocast):
    check_model(model, loss)
    check_optimizer(optimizer)
    one_of("autocast", autocast, [None, torch.bfloat16, torch.float16])


def take_step(model, loss, optimizer, x, y, micro_batch, autocast, counted=False):
    """One training step on the mean loss over x; the most bytes a micro-batch saved, 0 unless ``counted``.

    Through ``backward()`` and on the module itself, as the reader's own loop does it: the book's trainer is functional,
    and would hold other tensors.
    """
    optimizer.zero_grad(set_to_none=True)
    most = 0
    for share, xs, ys in pieces(x, y, micro_batch):
        # No hooks in an ordinary step: they would hold tensors longer than training does.
        watch = _saved([*model.parameters(), *model.buffers(), x, y]) if counted else nullcontext({})
        cast = torch.autocast(x.device.type, dtype=autocast) if autocast else nullcontext()
        with watch as saved, cast:
            value = loss(model(xs), ys)
        most = max(most, sum(storage.nbytes() for storage in saved.values()))
        check_loss(value)
        (value * share).backward()
    if all(p.grad is None for p in trained(model)):
        ignored(value)
    optimizer.step()
    return most


@contextmanager
def _saved(known):
    """Collect {address: storage} of what autograd saves inside the block, except storages of ``known``."""
    skip = {t.untyped_storage().data_ptr() for t in known}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in skip:
            # Holding the storage keeps its address from being handed out again while we count.
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
