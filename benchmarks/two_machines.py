"""Time to a training loss of 1.0 on MNIST-1D, by batch size: one core beside the GPU of the same computer.

python benchmarks/two_machines.py --save results   (two minutes on an H200; --quick, without a GPU, shows that it runs).
For a small and a large network: steps to the target with the rate tuned at each batch size on seeds that are not
counted, and the seconds of one PyTorch step on one core, on all cores and on the GPU. Chapter 4 multiplies the two.
"""

import argparse
import json
import math
import os
import platform
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import batchlab as bl
from batchlab.outcomes import best_lr, to_target

NETWORKS = {"small": (40, 100, 100, 10), "large": (40, 2000, 2000, 10)}
SIZES = (8, 32, 64, 128, 256, 512, 1024, 4000)
CHOOSE, COUNT = range(1100, 1104), range(1104, 1109)
FACTORS = {"small": (0.4, 0.65, 1, 1.5, 2.2), "large": (0.1, 0.2, 0.4, 0.7, 1.1, 1.6, 2.3)}  # of the guessed rate


def steps(data, layers, batch_size, factors, device):
    expected = 120 * (1 + 130 / batch_size)
    run = bl.Run(
        data=data, model=bl.models.mlp(layers), optimizer=bl.optim.sgd(), lr=1.0, batch_size=batch_size, device=device,
        target=("train_loss", 1.0), evaluate=("train",), examples=math.ceil(2 * expected) * batch_size,
        evaluate_every=max(1, round(0.03 * expected)) * batch_size,
    )  # fmt: skip
    lrs = [1.8 * (1 - math.exp(-batch_size / 90)) * factor for factor in factors]
    best = best_lr(to_target(bl.sweep(run, lr=lrs, seed=CHOOSE), *run.target), "step", edge="flag")
    lr, at_edge = float(best.lr[0]), bool(best.at_edge[0])
    counted = to_target(bl.sweep(run, lr=[lr], seed=COUNT), *run.target).step.tolist()
    return {"lr": lr, "at_edge": at_edge, "steps": counted}


def seconds(data, layers, sizes, device, threads):
    torch.set_num_threads(threads)
    x, y = (t.to(device) for t in data.train)
    model = bl.models.build(bl.models.mlp(layers), seed=0).to(device)
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3)
    found = bl.throughput.measure_training(
        model, cross_entropy, sgd, lambda b: (x[:b], y[:b]), sizes, seconds=5, warmup=2
    )
    return [[t.seconds.estimate, t.seconds.low, t.seconds.high] for t in found.timings]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the small network at two sizes")
    parser.add_argument("--save", type=Path, help="a folder for two-machines.json")
    asked = parser.parse_args()
    gpu, cores = torch.cuda.is_available(), os.cpu_count()
    torch.backends.cuda.matmul.allow_tf32 = False  # float32 means float32
    sizes, data = (SIZES[3:5] if asked.quick else SIZES), bl.data.mnist1d(4000, val=100, test=100)
    where = {"one core": ("cpu", 1), "all cores": ("cpu", cores)} | ({"GPU": ("cuda", 1)} if gpu else {})
    rows = []
    for network in list(NETWORKS)[: 1 if asked.quick else 2]:
        layers = NETWORKS[network]
        times = {name: seconds(data, layers, sizes, *how) for name, how in where.items()}
        for i, batch_size in enumerate(sizes):
            row = {"network": network, "batch_size": batch_size}
            row |= steps(data, layers, batch_size, FACTORS[network], "cuda" if gpu else "cpu")
            rows.append(row | {name: found[i] for name, found in times.items()})
            print(rows[-1], flush=True)
    environment = {
        "GPU": torch.cuda.get_device_name() if gpu else None, "cores": cores, "python": platform.python_version(),
        "torch": torch.__version__, "choose": [*CHOOSE], "count": [*COUNT],
    }  # fmt: skip
    if asked.save:
        text = json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n"
        (asked.save / "two-machines.json").write_text(text)


if __name__ == "__main__":
    main()
