"""The ways to train that ``sweep.py`` times: functions (run, learning rates, seeds) -> (advance, networks).

``advance(steps)`` trains ``networks`` networks for so many steps, from wherever they stand. The loops and libraries
train one network at a time, which is how they are used; JAX and the package train one for each rate and seed.
"""

import importlib.util
from dataclasses import replace

import torch
from _jax import jax_one, jax_scan
from torch import nn
from torch.nn import functional as F

from batchlab import sweep
from batchlab.engine import native
from batchlab.engine.plan import plan


def forever(make):
    while True:
        yield from make()


def torch_optimizer(run, parameters):
    kinds = {"sgd": torch.optim.SGD, "momentum": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[run.optimizer.name](parameters, lr=run.lr, **dict(run.optimizer.settings))


def loss_of(outputs, y):
    return F.cross_entropy(outputs.flatten(0, -2), y.flatten())


def loader_of(run):
    dataset = torch.utils.data.TensorDataset(*run.data.train)
    return torch.utils.data.DataLoader(dataset, batch_size=run.batch_size, shuffle=True, drop_last=True)


# ---------------------------------------------------------------- one network at a time


def dataloader_loop(run, rates, seeds):
    loader = loader_of(run)
    return one_by_one(run, forever(lambda: loader))


def tensor_loop(run, rates, seeds):
    x, y = run.data.train

    def epoch():
        for index in torch.randperm(len(x))[: len(x) // run.batch_size * run.batch_size].split(run.batch_size):
            yield x[index], y[index]

    return one_by_one(run, forever(epoch))


def one_by_one(run, batches):
    model = run.model(0)
    optimizer = torch_optimizer(run, model.parameters())

    def advance(steps):
        for _ in range(steps):
            x, y = next(batches)
            optimizer.zero_grad()
            loss_of(model(x), y).backward()
            optimizer.step()

    return advance, 1


def lightning(run, rates, seeds):
    import lightning

    __import__("logging").getLogger("lightning.pytorch").setLevel("ERROR")  # its import sets it to INFO

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = run.model(0)

        def training_step(self, batch, _):
            return loss_of(self.model(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch_optimizer(run, self.parameters())

    module, loader = Module(), loader_of(run)

    def advance(steps):
        lightning.Trainer(
            max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        ).fit(module, loader)  # fmt: skip

    return advance, 1


def whole_epochs(run, fit):
    """A library that counts in epochs, told to make a number of steps: fit(x, y) trains one epoch of these examples."""
    x, y = (t.numpy() for t in run.data.train)
    whole = len(x) // run.batch_size * run.batch_size

    def advance(steps):
        for _ in range(steps * run.batch_size // whole):
            fit(x[:whole], y[:whole])
        if rest := steps * run.batch_size % whole:
            fit(x[:rest], y[:rest])

    return advance, 1


def skorch(run, rates, seeds):
    import skorch

    settings = {f"optimizer__{name}": value for name, value in run.optimizer.settings}
    net = skorch.NeuralNetClassifier(
        lambda: run.model(0), criterion=nn.CrossEntropyLoss, optimizer=torch.optim.SGD, lr=run.lr,
        batch_size=run.batch_size, iterator_train__shuffle=True, iterator_train__drop_last=True, train_split=None,
        verbose=0, warm_start=True, **settings,
    ).initialize()  # fmt: skip
    return whole_epochs(run, lambda x, y: net.partial_fit(x, y, epochs=1))


def keras_on_torch(run, rates, seeds):
    import keras

    sizes = sizes_of(run)
    hidden = [keras.layers.Dense(size, activation="relu") for size in sizes[1:-1]]
    model = keras.Sequential([keras.Input((sizes[0],)), *hidden, keras.layers.Dense(sizes[-1])])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(run.lr, momentum=dict(run.optimizer.settings)["momentum"]), loss)
    return whole_epochs(run, lambda x, y: model.fit(x, y, batch_size=run.batch_size, epochs=1, verbose=0))


# ---------------------------------------------------------------- many networks at a time


def sizes_of(run):
    """Inputs, hidden widths and outputs of an MLP; None of any other model."""
    return dict(run.model.settings)["sizes"] if getattr(run.model, "kind", None) == "mlp" else None


def batchlab(run, rates, seeds):
    """What ``sweep`` does where the kernel trains: its networks go on from where they stand, as the rivals' do."""
    runs = [replace(run, lr=lr, seed=seed) for lr in rates for seed in seeds]
    standing = native.networks(plan(run), runs)

    def advance(steps):
        native.advance(plan(replace(run, steps=steps)), runs, standing, torch.get_num_threads())

    return advance, len(runs)


def long_sweep(run, rates, seeds):
    """What ``sweep`` does where the kernel does not train and the work is long: 16 networks in a process a core.

    They are built and evaluated anew in each call.
    """
    rates, seeds = rates[::2], list(seeds)[::2]

    def advance(steps):
        sweep(replace(run, steps=steps), lr=rates, seed=seeds, n_jobs=torch.get_num_threads())

    return advance, len(rates) * len(seeds)


RIVALS = {
    "DataLoader loop": (dataloader_loop, None),
    "tensor loop": (tensor_loop, None),
    "Lightning": (lightning, "lightning"),
    "skorch": (skorch, "skorch"),
    "Keras on torch": (keras_on_torch, "keras"),
    "JAX jit(vmap(scan))": (jax_scan, "jax"),
    "JAX jit(step)": (jax_one, "jax"),
    "batchlab": (batchlab, None),
    "batchlab, long sweep": (long_sweep, None),
}


def installed(names):
    """name -> the rival, of those that can be imported here."""
    return {name: RIVALS[name][0] for name in names if not RIVALS[name][1] or importlib.util.find_spec(RIVALS[name][1])}
