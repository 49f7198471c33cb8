"""Which engine trains the lanes of one batch size, and how many of them together: a rule on two counts.

What the C kernel computes, it trains. For the rest: one step of one lane dispatches some operations and writes some
bytes. On a CPU an operation costs about 3 microseconds to dispatch and 0.12 nanoseconds a byte it writes (products and
convolutions included: in small networks they keep step with what they write). Where operations write little,
dispatching is what takes the time, and a stack of lanes pays it once for all of them; so many that an operation on the
stack writes a megabyte, past which it falls out of the cache. Where operations write much there is nothing to save, and
a stack only loses the cache: then one lane a core. Either way a core works alone, with one thread: threads that share
an operation wait for each other at its end, and on a busy machine they wait long. The constants are measured by
``benchmarks/sweep.py``.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from batchlab._check import fail
from batchlab.engine import kernel, native, stacked, structures
from batchlab.training import models, step

LANES_OF_A_UNIT = {"chain": 16, "tape": 4}  # for each of the kernel's threads: they stay busy, a kill loses little

DISPATCH, BYTE = 3e-6, 1.2e-10  # seconds an operation, and a byte written
LONE_ABOVE = 40e3  # bytes an operation writes: above, a lane is trained alone
TOGETHER = 1e6  # bytes an operation on a whole stack may write
UNIT_PAYS = 2.0  # seconds of work, below which lone lanes share a unit: each carries the data to its process anew
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
    """``engine`` trains the lanes of one batch size, ``together`` of them in one unit of work.

    ``seconds``: about what a lane takes a core; 0 for the kernel, which has threads of its own, and on a GPU.
    """

    engine: str
    together: int
    seconds: float = 0.0


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


def choose(run, engine, lanes, steps, cores, memory):
    """The ``Choice`` for ``lanes`` lanes of ``run``, which differ in lr and seed only, of ``steps`` steps each.

    ``engine`` is "auto" or one of the others, which is then taken if it can do what the run asks; else ValueError.
    ``memory`` bounds the bytes of a stack, and ``cores`` are to have a unit of work each.
    """
    plain = run.precision != "float16" and run.checkpoint_segments == 1
    if engine in ("stacked", "compiled") and not plain:
        fail("engine", engine, "'loop' or 'auto' for precision='float16' and for checkpoint_segments > 1")
    if engine in ("auto", "native"):
        try:
            lanes_of_a_thread = LANES_OF_A_UNIT[native.kind(run)]
            if native.library():
                return Choice("native", lanes_of_a_thread * torch.get_num_threads())
        except structures.Unreadable as why:
            if engine == "native":
                fail(
                    "engine", engine, f"another one: the C kernel does not know {why}, see batchlab.engine.native.suits"
                )
    counted, on_cpu = cost(run), step.device_of(run).type == "cpu"
    written, seconds = counted.bytes / counted.operations, counted.seconds * steps if on_cpu else 0.0
    together = max(1, min(memory // counted.bytes, -(-lanes // cores)))
    if on_cpu:
        together = 1 if written > LONE_ABOVE else min(together, int(TOGETHER / written))
    if engine == "loop" or (engine != "stacked" and engine != "compiled" and not stackable(run)):
        return Choice("loop", _in_a_unit(seconds, lanes, cores), seconds)
    if engine == "compiled" or (engine != "stacked" and seconds * lanes > COMPILING_PAYS and _gains(run)):
        return Choice("compiled" if can_compile(run) else "stacked", together, seconds)
    if together > 1 or engine == "stacked":
        return Choice("stacked", together, seconds)
    return Choice("loop", _in_a_unit(seconds, lanes, cores), seconds)


def _in_a_unit(seconds, lanes, cores):
    """How many lone lanes of so many seconds: few enough that no core waits long for the last unit."""
    return max(1, min(int(UNIT_PAYS / seconds), lanes // (4 * cores))) if seconds else 1


def memory(run):
    """The bytes that stacks may take where nobody says how many: 1 GiB, or half of what is free on a GPU."""
    device = step.device_of(run)
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2**30


def can_compile(run):
    """Whether ``torch.compile`` finds what it needs: a compiler, and a folder to load what it makes from."""
    return bool(step.device_of(run).type != "cpu" or native.library()) and kernel.keep_torch_apart()


def _gains(run):
    """Whether compiling makes the steps faster: convolutions it does not."""
    return not any(isinstance(m, nn.modules.conv._ConvNd) for m in models.build(run.model, run.seed).modules())
