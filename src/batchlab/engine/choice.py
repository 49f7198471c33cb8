"""Which engine trains the lanes of one batch size, and how many of them together: a rule on two counts.

One step of one lane dispatches some operations and writes some bytes. On a CPU an operation costs about 3 microseconds
to dispatch and 0.12 nanoseconds a byte it writes (products and convolutions included: in small networks they keep step
with what they write). Where operations write little, dispatching is what takes the time, and a stack of lanes pays it
once for all of them; so many that an operation on the stack writes a megabyte, past which it falls out of the cache.
Where operations write much there is nothing to save, and a stack only loses the cache: then one lane a core. Either way
a core works alone, with one thread: threads that share an operation wait for each other at its end, and on a busy
machine they wait long. The constants are measured by ``benchmarks/sweep.py``.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from batchlab.engine import kernel, native, stacked
from batchlab.training import models, step

DISPATCH, BYTE = 3e-6, 1.2e-10  # seconds an operation, and a byte written
LONE_ABOVE = 40e3  # bytes an operation writes: above, a lane is trained alone
TOGETHER = 1e6  # bytes an operation on a whole stack may write
WORKERS_PAY = 20.0  # seconds of work for one core, above which starting a process on every core pays
COMPILING_PAYS = 300.0  # seconds of work for one batch size, above which torch.compile wins back its half minute


@dataclass(frozen=True)
class Cost:
    """What one step of one lane dispatches and writes."""

    operations: int
    bytes: int

    @property
    def seconds(self):
        """About how long the step takes a core."""
        return DISPATCH * self.operations + BYTE * self.bytes


@dataclass(frozen=True)
class Choice:
    """``engine`` trains the lanes of one batch size, ``together`` of them in one unit of work."""

    engine: str
    together: int


class _Counter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = self.bytes = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        self.operations += 1
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            self.bytes += tensor.nbytes if isinstance(tensor, torch.Tensor) else 0
        return out


def cost(run):
    """The ``Cost`` of one step of ``run``, counted while it is taken.

    >>> from batchlab import Run, data, models, optim
    >>> run = Run(data=data.digits(), model=models.linear(64, 10), optimizer=optim.sgd(), lr=0.1, batch_size=8, steps=1)
    >>> cost(run).bytes > 8 * 10 * 4  # at least the outputs
    True
    """
    model, params, buffers, parts = step.prepare(run)
    x, y = (t[: run.batch_size] for t in parts["train"])
    state, lr = run.optimizer.init(params), step.scalar(run.lr, params)
    with models.seeded(run.seed, "dropout", x.device), _Counter() as counter:
        grads = step.gradient(run, model, params, buffers, x, y)[1]
        params, _ = run.optimizer.update(grads, state, params, lr)
        step.average(run, params, params)
    return Cost(counter.operations, counter.bytes)


def stackable(run):
    """Whether lanes of ``run`` can be trained as one stacked model: tried, on two lanes and as few examples as can be.

    What cannot: float16 with its loss scaling, checkpointing, layers that draw random numbers of their own
    (``nn.Dropout``; ``models.Dropout`` can) or that ``torch.func.vmap`` does not know.
    """
    if run.precision == "float16" or run.checkpoint_segments > 1:
        return False
    try:
        stacked.try_step(run)
    except (RuntimeError, ValueError, NotImplementedError):
        return False
    return True


def choose(run, lanes, steps, memory):
    """The ``Choice`` for ``lanes`` lanes of ``run`` and ``steps`` steps; a stack takes ``memory`` bytes at most."""
    if native.suits(run) and kernel.library():
        return Choice("native", lanes)
    if not stackable(run):
        return Choice("loop", 1)
    counted = cost(run)
    written = counted.bytes / counted.operations
    together = max(1, int(memory // counted.bytes))
    if step.device_of(run).type == "cpu":
        together = 1 if written > LONE_ABOVE else min(together, int(TOGETHER / written))
    if counted.seconds * steps * lanes > COMPILING_PAYS and _compiles(run):
        return Choice("compiled", together)
    return Choice("loop" if together == 1 else "stacked", together)


def _compiles(run):
    """``torch.compile`` needs a C compiler on a CPU, and makes convolutions no faster."""
    if step.device_of(run).type == "cpu" and not kernel.library():
        return False
    return not any(isinstance(m, nn.modules.conv._ConvNd) for m in models.build(run.model, run.seed).modules())
