"""The name of a lane: a hash of all that decides its numbers.

That is every argument and the code behind it, the data, the versions of Python, numpy and torch, this package's own
code as far as it trains, and the engine that trains the lane. How values and code are hashed is in ``identity``.
"""

import sys
from dataclasses import fields
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from batchlab.engine.identity import OWN, identity
from batchlab.training import models
from batchlab.training.dataset import fingerprint
from batchlab.training.step import device_of


def common(run):
    """A hash of all that lanes share which differ from ``run`` in batch size, learning rate and seed only.

    Raises ``identity.Unkeyable``, which names the field and the way from there.
    """
    own = {field.name: getattr(run, field.name) for field in fields(run)}
    for apart in ("lr", "batch_size", "seed", "progress", "data"):
        del own[apart]
    settings = torch.get_default_dtype(), torch.get_float32_matmul_precision(), device_of(run).type
    versions = sys.version_info[:2], np.__version__, str(torch.__version__)
    return identity(**own, run=type(run), surroundings=(fingerprint(run.data), _code(), *versions, *settings))


def weights(run):
    """A hash of the model that ``run`` starts from: a factory of the reader's own may read files, or ignore its seed.

    Empty for this package's factories, which the seed and the code decide. Raises ``identity.Unkeyable``.
    """
    return "" if type(run.model) is models.Factory else identity(model=models.build(run.model, run.seed))


def name(common, weights, run, engine):
    """The name of the lane of ``run`` as ``engine`` trains it: 40 hexadecimal digits."""
    return identity(lane=(common, weights, engine, run.batch_size, run.lr, run.seed))[:40]


@cache
def _code():
    """A hash of this package's own code, as far as it trains: editing a figure keeps the lanes."""
    home, digest = Path(__file__).parents[1], sha256()
    for path in sorted(path for part in OWN for path in [home / part, *(home / part).rglob("*")]):
        if path.is_file() and path.parent.name != "__pycache__":
            body = path.read_bytes()
            digest.update(f"{path.relative_to(home).as_posix()} {len(body)} ".encode() + body)
    return digest.hexdigest()
