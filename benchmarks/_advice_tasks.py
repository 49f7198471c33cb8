"""The problems of advice_tasks.md, as programs: a model, a mean loss, data as tensors, an optimiser of a rate."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits, cross_entropy, mse_loss

import batchlab as bl


@dataclass(frozen=True)
class Task:
    """``data()`` gives tensors, ``model()`` a new model, ``rule(parameters, lr)`` its optimizer; ``lr`` is where the
    search for a rate at a batch of 32 begins, and ``examples`` how many the run goes through there."""

    data: Callable
    model: Callable
    rule: Callable
    lr: float
    examples: int
    loss: Callable = cross_entropy


SGD = torch.optim.SGD
MOMENTUM = partial(torch.optim.SGD, momentum=0.9)
ADAM = torch.optim.Adam
ADAMW = partial(torch.optim.AdamW, weight_decay=0.01)


def mnist(size=28):
    x, y = bl.data.mnist5k(images=True).train
    return (avg_pool2d(x, 2) if size == 14 else x.flatten(1)), y


def digits(images=True):
    return bl.data.digits(images=images).train


def text(context=16, tokens=65_536):
    return bl.data.documentation_text(context, tokens=tokens, val=context * 64, test=context * 64).train


def letters(outputs, y):
    return cross_entropy(outputs.flatten(0, 1), y.flatten())


def planted():
    """Linear regression with curvatures i^-1.5 and noisy labels: y = x w + noise."""
    random = np.random.default_rng(0)
    scale = np.arange(1, 101) ** -0.75
    x = random.standard_normal((20_000, 100)) * scale
    y = x @ np.ones((100, 1)) + 0.5 * random.standard_normal((20_000, 1))
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)


def flat_start(model):
    nn.init.zeros_(model.weight)
    return model


def friedman():
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(20_000, noise=1.0, random_state=0)
    return torch.tensor(2 * x - 1, dtype=torch.float32), torch.tensor((y - y.mean()) / y.std(), dtype=torch.float32)[
        :, None
    ]


def cancer():
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def itself():
    x, _ = bl.data.digits().train
    return x, x


def dense(*sizes):
    layers = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def convolutions(side, width=16):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * width * (side // 4) ** 2, 10),
    )  # fmt: skip


def signals():
    return nn.Sequential(
        nn.Conv1d(1, 25, 5, stride=2), nn.ReLU(), nn.Conv1d(25, 25, 3, stride=2), nn.ReLU(),
        nn.Conv1d(25, 25, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10),
    )  # fmt: skip


class Residual(nn.Module):
    """x + f(x), f two normalised convolutions."""

    def __init__(self, width, norm):
        super().__init__()
        self.f = nn.Sequential(
            norm(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), norm(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip

    def forward(self, x):
        return x + self.f(x)


def residual_net(norm, width=12, blocks=2):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, stride=2), *(Residual(width, norm) for _ in range(blocks)),
        norm(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10),
    )  # fmt: skip


class Causal(nn.Module):
    """A causal transformer of 2 blocks, 32 wide, over 96 letters."""

    def __init__(self, context=16, width=32):
        super().__init__()
        self.embed, self.place = nn.Embedding(96, width), nn.Parameter(0.02 * torch.randn(context, width))
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 96)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context))

    def forward(self, ids):
        return self.head(self.blocks(self.embed(ids) + self.place, mask=self.mask, is_causal=True))


def words():
    """Passages of 5 to 24 words of the manual, padded, their mask, and which of eight stretches of it they are from."""
    x, _ = bl.data.documentation_text(1, tokens=262_144, val=64, test=64).train
    letters_of = "".join(chr(int(t) + 32) if t < 95 else " " for t in x[:, 0])
    found, random = letters_of.split(), np.random.default_rng(0)
    names, counts = np.unique(found, return_counts=True)
    place = {str(name): i + 2 for i, name in enumerate(names[np.argsort(-counts, kind="stable")][:1000])}
    codes, at, rows, labels = [place.get(word, 1) for word in found], 0, [], []
    while at + 24 <= len(codes):
        length = int(random.integers(5, 25))
        rows.append(codes[at : at + length] + [0] * (24 - length))
        labels.append(8 * at // len(codes))
        at += length
    ids = torch.tensor(rows)
    return (ids, (ids > 0).long()), torch.tensor(labels)


class Topic(nn.Module):
    """A transformer encoder over words; the mean over those that are there."""

    def __init__(self, width=32):
        super().__init__()
        self.embed = nn.Embedding(1002, width)
        block = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, 8)

    def forward(self, ids, mask):
        h = self.blocks(self.embed(ids), src_key_padding_mask=mask == 0) * mask[..., None]
        return self.head(h.sum(1) / mask.sum(1, keepdim=True))


class Recurrent(nn.Module):
    """An LSTM of 64 units over 96 letters."""

    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(96, 32), nn.LSTM(32, 64, batch_first=True), nn.Linear(64, 96)

    def forward(self, ids):
        return self.head(self.lstm(self.embed(ids))[0])


def ratings():
    random = np.random.default_rng(0)
    user, item = random.integers(0, 300, 30_000), random.integers(0, 200, 30_000)
    left, right = random.standard_normal((300, 4)), random.standard_normal((200, 4))
    y = (left[user] * right[item]).sum(1) / 2 + 0.3 * random.standard_normal(30_000)
    return (torch.tensor(user), torch.tensor(item)), torch.tensor(y, dtype=torch.float32)


class Factors(nn.Module):
    """Matrix factorisation of rank 8 with biases."""

    def __init__(self, users=300, items=200):
        super().__init__()
        self.left, self.right = nn.Embedding(users, 9), nn.Embedding(items, 9)
        for part in (self.left, self.right):
            nn.init.normal_(part.weight, std=0.3)

    def forward(self, user, item):
        a, b = self.left(user), self.right(item)
        return (a[:, :8] * b[:, :8]).sum(1) + a[:, 8] + b[:, 8]


class Spoken(nn.Module):
    """GPT-2 from its configuration; needs the package transformers."""

    def __init__(self, context=16, width=48, layers=2):
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        shape = GPT2Config(vocab_size=96, n_positions=context, n_embd=width, n_layer=layers, n_head=4, resid_pdrop=0,
                           embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0)  # fmt: skip
        self.gpt = GPT2LMHeadModel(shape)

    def forward(self, ids):
        return self.gpt(ids).logits


def diabetes():
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)[:, None]


def taught():
    """What a planted network 20-16-1 says, and a little noise."""
    random = np.random.default_rng(1)
    x = random.standard_normal((16_000, 20))
    y = np.tanh(x @ random.standard_normal((20, 16)) / 20**0.5) @ random.standard_normal((16, 1)) / 4
    y = y + 0.1 * random.standard_normal(y.shape)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)


def risk():
    """One in twelve defaults; one label in fifty is wrong."""
    from sklearn.datasets import make_classification

    x, y = make_classification(12_000, 20, n_informative=6, weights=[11 / 12], flip_y=0.04, random_state=1)
    x = (x - x.mean(0)) / x.std(0)
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y)


def patches():
    """MNIST-1D's 40 numbers as ten of four."""
    x, y = bl.data.mnist1d(6000).train
    return x.reshape(-1, 10, 4), y


def clicks():
    """Whether a user clicks an item, by a planted rank of 3."""
    random = np.random.default_rng(1)
    user, item = random.integers(0, 400, 40_000), random.integers(0, 250, 40_000)
    left, right = random.standard_normal((400, 3)), random.standard_normal((250, 3))
    y = random.random(40_000) < 1 / (1 + np.exp(-2 * (left[user] * right[item]).sum(1)))
    return (torch.tensor(user), torch.tensor(item)), torch.tensor(y, dtype=torch.float32)


def likes():
    return Factors(400, 250)


def strided():
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, stride=2), nn.Tanh(), nn.Conv2d(12, 24, 3, stride=2), nn.Tanh(),
        nn.Flatten(), nn.Linear(24 * 2 * 2, 10),
    )  # fmt: skip


def normalised():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 3 * 3, 10),
    )  # fmt: skip


def residual_signals(width=16):
    def block():
        return nn.Sequential(
            nn.GroupNorm(4, width), nn.ReLU(), nn.Conv1d(width, width, 3, padding=1), nn.GroupNorm(4, width),
            nn.ReLU(), nn.Conv1d(width, width, 3, padding=1),
        )  # fmt: skip

    return nn.Sequential(
        nn.Conv1d(1, width, 5, stride=2), Plus(block()), Plus(block()), nn.ReLU(), nn.AdaptiveAvgPool1d(4),
        nn.Flatten(), nn.Linear(4 * width, 10),
    )  # fmt: skip


class Plus(nn.Module):
    """x + f(x)."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return x + self.f(x)


class Patched(nn.Module):
    """A transformer encoder over ten patches, or an LSTM: the class from the mean over them, or from the last."""

    def __init__(self, recurrent, width=32):
        super().__init__()
        self.recurrent, self.enter = recurrent, nn.Linear(4, width)
        self.place = nn.Parameter(0.02 * torch.randn(10, width))
        block = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.LSTM(width, 48, batch_first=True) if recurrent else nn.TransformerEncoder(
            block, 2, enable_nested_tensor=False)  # fmt: skip
        self.head = nn.Linear(48 if recurrent else width, 10)

    def forward(self, x):
        h = self.enter(x)
        return self.head(self.body(h)[0][:, -1] if self.recurrent else self.body(h + self.place).mean(1))


class Bag(nn.Module):
    """Topic of a passage from the mean of its words' vectors."""

    def __init__(self, width=32):
        super().__init__()
        self.embed, self.head = nn.Embedding(1002, width), nn.Linear(width, 8)

    def forward(self, ids, mask):
        return self.head((self.embed(ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


# What the rules were tried on; not in the table.
TRIED = {
    "tried-signals": Task(lambda: bl.data.mnist1d(4000).train, lambda: dense(40, 100, 100, 10), SGD, 0.1, 120_000),
    "tried-digits": Task(partial(digits, False), lambda: dense(64, 64, 10), ADAM, 0.003, 12_000),
}
FIRST_TASKS = {
    "linear-synthetic": Task(planted, lambda: flat_start(nn.Linear(100, 1, bias=False)), SGD, 0.05, 60_000, mse_loss),
    "softmax-mnist": Task(mnist, lambda: nn.Linear(784, 10), SGD, 0.01, 24_000),
    "mlp-friedman": Task(friedman, lambda: dense(10, 64, 64, 1), MOMENTUM, 0.03, 60_000, mse_loss),
    "mlp-cancer": Task(cancer, lambda: dense(30, 32, 2), ADAMW, 0.003, 6_000),
    "autoencoder-digits": Task(itself, lambda: dense(64, 32, 8, 32, 64), ADAM, 0.003, 30_000, mse_loss),
    "cnn-digits": Task(digits, lambda: convolutions(8, 8), ADAM, 0.003, 12_000),
    "cnn-mnist": Task(partial(mnist, 14), lambda: convolutions(14, 8), MOMENTUM, 0.02, 24_000),
    "cnn-signals": Task(lambda: bl.data.mnist1d(8000, signals=True).train, signals, SGD, 0.1, 120_000),
    "resnet-mnist": Task(partial(mnist, 14), lambda: residual_net(partial(nn.GroupNorm, 4)), MOMENTUM, 0.03, 24_000),
    "batchnorm-digits": Task(digits, lambda: residual_net(nn.BatchNorm2d), ADAMW, 0.005, 12_000),
    "transformer-text": Task(text, Causal, ADAMW, 0.003, 24_000, letters),
    "ragged-words": Task(words, Topic, ADAM, 0.003, 24_000),
    "lstm-text": Task(text, Recurrent, ADAM, 0.005, 24_000, letters),
    "factors-ratings": Task(ratings, Factors, SGD, 2.0, 600_000, mse_loss),
    "gpt2-text": Task(text, Spoken, ADAMW, 0.003, 24_000, letters),
}
TASKS = {
    "linear-diabetes": Task(diabetes, lambda: nn.Linear(10, 1), MOMENTUM, 0.003, 8_000, mse_loss),
    "softmax-signals": Task(lambda: bl.data.mnist1d(4000).train, lambda: nn.Linear(40, 10), ADAM, 0.01, 60_000),
    "mlp-teacher": Task(taught, lambda: dense(20, 64, 64, 1), ADAMW, 0.003, 80_000, mse_loss),
    "mlp-risk": Task(risk, lambda: dense(20, 32, 32, 2), MOMENTUM, 0.03, 60_000),
    "mlp-mnist": Task(mnist, lambda: dense(784, 100, 10), ADAM, 0.001, 24_000),
    "autoencoder-signals": Task(lambda: (bl.data.mnist1d(4000).train[0],) * 2, lambda: dense(40, 64, 12, 64, 40), SGD,
                                0.3, 80_000, mse_loss),
    "cnn-images": Task(partial(mnist, 14), strided, ADAMW, 0.003, 24_000),
    "cnn-waves": Task(lambda: bl.data.mnist1d(8000, signals=True).train, signals, ADAM, 0.003, 60_000),
    "resnet-waves": Task(lambda: bl.data.mnist1d(6000, signals=True).train, residual_signals, MOMENTUM, 0.03, 36_000),
    "batchnorm-mnist": Task(partial(mnist, 14), normalised, MOMENTUM, 0.03, 16_000),
    "transformer-patches": Task(patches, lambda: Patched(False), ADAM, 0.003, 36_000),
    "lstm-patches": Task(patches, lambda: Patched(True), ADAMW, 0.005, 36_000),
    "bag-words": Task(words, Bag, ADAM, 0.01, 48_000),
    "factors-clicks": Task(clicks, likes, ADAM, 0.01, 240_000, binary_cross_entropy_with_logits),
    "gpt2-windows": Task(partial(text, 24, 98_304), lambda: Spoken(24, 32, 1), ADAMW, 0.003, 16_000, letters),
}  # fmt: skip
