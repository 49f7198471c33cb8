"""Do four workers train the network that one would train with the whole batch?

The first 1,408 digits, layers 64-32-10, plain SGD, rate 0.1, batches of 32, three epochs, float64: weights of one
process, and of four under torchrun (gloo), in each of ``CASES``. "apart" is the distance of the ends over the distance
of one process's end from the start. Seeds 1000 to 1009. A minute on two idle cores.
"""

import json
import os
import subprocess
import sys

import pandas as pd
import torch
from torch import distributed
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

import batchlab as bl

SEEDS = range(1000, 1010)
EQUAL, RAGGED = (8, 8, 8, 8), (14, 10, 6, 2)  # how many of each batch a worker takes
CASES = {
    "equal shares": dict(sizes=EQUAL),
    "weighted shares": dict(sizes=RAGGED, weighted=True),
    "plain mean": dict(sizes=RAGGED),
    "batchnorm": dict(sizes=EQUAL, norm="batch"),
    "clipped first": dict(sizes=EQUAL, clip=0.5, before=True),
    "clipped after": dict(sizes=EQUAL, clip=0.5),
}


def rows(seeds=SEEDS, cases=tuple(CASES), cache=None):
    """One row a case and seed, with "apart"."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={len(EQUAL)}"]
    asked = json.dumps([list(seeds), list(cases)])
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*torchrun, __file__, asked], env=variables, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return pd.DataFrame(json.loads(done.stdout), columns=["case", "seed", "apart"])


def train(seed, sizes=None, weighted=False, norm="none", clip=None, before=False):
    """The weights at the start and at the end, flat; of one process where ``sizes`` is None."""
    x, y = (part[:1408] for part in bl.data.digits().train)
    x, low, high, weight = x.double(), 0, 32, 1.0
    model = bl.models.build(bl.models.mlp((64, 32, 10), norm=norm), seed).double()
    net, begun = model, flat(model)
    if sizes:
        rank = distributed.get_rank()
        low, high = sum(sizes[:rank]), sum(sizes[: rank + 1])
        weight = len(sizes) * sizes[rank] / 32 if weighted else 1.0
        net = model if before else DistributedDataParallel(model)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for index in bl.data.index_stream(1408, 32, seed=seed, epochs=3):
        index = index[low:high]
        sgd.zero_grad()
        (weight * cross_entropy(net(x[index]), y[index])).backward()
        if clip:
            clip_grad_norm_(model.parameters(), clip)
        if before:  # each worker's own gradient was clipped; now the mean
            for p in model.parameters():
                distributed.all_reduce(p.grad)
                p.grad /= len(sizes)
        sgd.step()
    return begun, flat(model)


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def worker(seeds, cases):
    """What each of the four processes does; the first prints."""
    torch.set_num_threads(1)
    with bl.parallel.rendezvous() as workers:
        found = []
        for case in cases:
            alone = {k: v for k, v in CASES[case].items() if k in ("norm", "clip")}
            for seed in seeds:
                _, end = train(seed, **CASES[case])
                if workers.rank == 0:
                    begun, want = train(seed, **alone)
                    found.append((case, seed, float((end - want).norm() / (want - begun).norm())))
    if workers.rank == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    worker(*json.loads(sys.argv[1]))
