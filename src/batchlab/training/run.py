"""One training run: everything that decides its outcome, as one frozen record that is checked when it is made."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from batchlab._check import count, fail, number, one_of
from batchlab.training import schedules
from batchlab.training.dataset import ORDERS, Dataset
from batchlab.training.optim import Optimizer

PRECISIONS = ("float32", "float64", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")
LOSSES = ("cross_entropy", "mse")
PARTS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that decides the outcome of one training; nothing else does.

    data, model, optimizer : a ``Dataset``, a factory ``seed -> nn.Module``, an ``Optimizer``
    lr : base learning rate, above 0; ``lr_schedule(examples_seen, batch_size)`` multiplies it
    batch_size : examples an update; ``batch_schedule(examples_seen)`` multiplies it (rounded to a whole number)
    epochs, steps, examples : how long, exactly one of them; ``examples`` ends with the batch that reaches it
    seed : decides the initial weights, the order of the data and the dropout masks
    loss : "cross_entropy", "mse", or a function (outputs, targets) -> mean loss over examples, a 0-dim tensor
    order, drop_last : how epochs are cut into batches, see ``dataset.index_stream``
    micro_batch : accumulate the gradient over pieces of this size, which divides ``batch_size``
    checkpoint_segments : keep activations only at the borders of this many segments of an ``nn.Sequential``
    precision : "float32", "float64", or autocast to "bfloat16" or "float16" (with loss scaling)
    l1 : adds l1 * sum|w| over all parameters to the objective (not to the reported loss)
    ema : in (0, 1): average the weights, a <- ema * a + (1 - ema) * w after each update, and evaluate those
    evaluate_every : in examples seen, by default one row an epoch; the first and last states are always evaluated
    evaluate : the parts to evaluate, from "train", "val" and "test"
    target : (metric, value) to stop at, e.g. ("val_accuracy", 0.9) or ("train_loss", 0.1); tried at evaluations
    loss_bound : a batch loss above it, or not finite, ends the run as diverged
    progress : show a tqdm bar

    Raises ValueError at once on an argument outside these, and TypeError on an unknown one.
    """

    data: Dataset
    model: Callable
    optimizer: Optimizer
    lr: float
    batch_size: int
    epochs: int | None = None
    steps: int | None = None
    examples: int | None = None
    seed: int = 0
    loss: str | Callable = "cross_entropy"
    order: str = "reshuffle"
    drop_last: bool = False
    lr_schedule: Callable = schedules.constant()
    batch_schedule: Callable = schedules.constant()
    micro_batch: int | None = None
    checkpoint_segments: int = 1
    precision: str = "float32"
    l1: float = 0.0
    ema: float | None = None
    device: str = "auto"
    evaluate_every: int | None = None
    evaluate: tuple = PARTS
    target: tuple | None = None
    loss_bound: float = 1e4
    progress: bool = False

    def __post_init__(self):
        def keep(name, value):  # as a plain Python number, so that equal runs print alike
            object.__setattr__(self, name, value)

        if not isinstance(self.data, Dataset):
            fail("data", type(self.data).__name__, "a batchlab.data.Dataset")
        if isinstance(self.model, nn.Module) or not callable(self.model):
            fail("model", type(self.model).__name__, "a factory: a function of a seed that returns an nn.Module")
        if not isinstance(self.optimizer, Optimizer):
            fail("optimizer", self.optimizer, "a batchlab.optim.Optimizer, such as optim.sgd()")
        keep("lr", number("lr", self.lr, above=0))
        keep("batch_size", count("batch_size", self.batch_size, at_most=len(self.data.train[0])))
        length = {k: getattr(self, k) for k in ("epochs", "steps", "examples") if getattr(self, k) is not None}
        if len(length) != 1:
            fail("epochs, steps, examples", length, "exactly one of the three")
        for name, value in length.items():
            keep(name, count(name, value))
        keep("seed", count("seed", self.seed, at_least=0))
        if not callable(self.loss):
            one_of("loss", self.loss, LOSSES)
        if (self.loss, self.data.classes is None) in (("mse", False), ("cross_entropy", True)):
            fail("loss", self.loss, "'cross_entropy' for labels, 'mse' for float targets, or your own function")
        one_of("order", self.order, ORDERS)
        for name in ("lr_schedule", "batch_schedule"):
            if not callable(getattr(self, name)):
                fail(name, getattr(self, name), "a function of the examples seen, see batchlab.schedules")
        if self.micro_batch is not None:
            keep("micro_batch", count("micro_batch", self.micro_batch, at_most=self.batch_size))
            if self.batch_size % self.micro_batch:
                fail("micro_batch", self.micro_batch, f"a divisor of batch_size = {self.batch_size}")
        keep("checkpoint_segments", count("checkpoint_segments", self.checkpoint_segments))
        one_of("precision", self.precision, PRECISIONS)
        keep("l1", number("l1", self.l1, at_least=0))
        if self.ema is not None:
            keep("ema", number("ema", self.ema, above=0, below=1))
        one_of("device", self.device, DEVICES)
        if self.evaluate_every is not None:
            keep("evaluate_every", count("evaluate_every", self.evaluate_every))
        if not isinstance(self.evaluate, tuple) or not set(self.evaluate) <= set(PARTS):
            fail("evaluate", self.evaluate, f"a tuple of parts from {PARTS}")
        if self.target is not None:
            if not (isinstance(self.target, tuple) and len(self.target) == 2):
                fail("target", self.target, "a pair (metric, value)")
            metric = one_of("target metric", self.target[0], metrics(self))
            keep("target", (metric, number("target value", self.target[1])))
        keep("loss_bound", number("loss_bound", self.loss_bound, above=0))
        for name in ("drop_last", "progress"):
            one_of(name, getattr(self, name), (True, False))


def metrics(run):
    """The metrics that the table of ``run`` will hold, and a target can name: e.g. "val_loss", "val_accuracy"."""
    kinds = ("loss",) if run.data.classes is None else ("loss", "accuracy")
    return tuple(f"{part}_{kind}" for part in run.evaluate for kind in kinds)
