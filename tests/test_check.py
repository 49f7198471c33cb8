"""A run is checked before it trains; what is refused, and in which words, stands in test_train.py."""

from dataclasses import replace

import pytest
import torch

from batchlab import Run, data, models, optim
from batchlab.engine.sweep import _grid
from batchlab.training import step
from batchlab.training.check import check

RUN = Run(data=data.digits(), model=models.mlp((64, 8, 10)), optimizer=optim.sgd(), lr=0.1, batch_size=32, steps=3)


def test_one_model_serves_the_checks_of_every_batch_size(monkeypatch):
    built, build = [], models.build
    monkeypatch.setattr(step.models, "build", lambda *given: built.append(given) or build(*given))
    checked = []
    monkeypatch.setattr("batchlab.engine.sweep.check", lambda run, model: checked.append(run) or check(run, model))
    _grid(RUN, [8, 16, 32, 64], [0.1, 0.2], [0, 1])
    assert len(built) == 1 and [run.batch_size for run in checked] == [8, 16, 32, 64]


def test_a_batch_size_that_does_not_fit_is_found_among_those_that_do():
    run = replace(RUN, model=models.mlp((64, 8, 10), norm="batch"), steps=None, epochs=1)
    examples = len(run.data.train[0])
    bad = next(size for size in range(9, examples) if examples % size == 1)
    with pytest.raises(ValueError, match=f"batch_size = {bad}: expected no batch or piece of one example"):
        _grid(run, [32, bad], [0.1], [0])


class Counting(torch.nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x


def counting(seed):
    return torch.nn.Sequential(models.mlp((64, 8, 10))(seed), Counting())


@pytest.mark.parametrize("model", [models.mlp((64, 8, 10), norm="batch", dropout=0.5), counting], ids=["mlp", "counts"])
def test_the_check_leaves_the_model_as_it_begins(model):
    run = replace(RUN, model=model)
    checked, fresh = check(run).state_dict(), step.built(run).state_dict()
    assert checked.keys() == fresh.keys() and all(torch.equal(v, fresh[k]) for k, v in checked.items())
