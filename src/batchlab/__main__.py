"""The command line: ``python -m batchlab advise my_problem.py``, ``init``, ``rescale``."""

import argparse
import runpy
import sys
import time
from pathlib import Path

TEMPLATE = '''"""A problem for `python -m batchlab advise`: this file is run, and must define the names below."""

import torch
from torch import nn

torch.manual_seed(0)

# Any torch.nn.Module, on the device on which you train.
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))

# A Dataset, a DataLoader, a tuple or dict of tensors, or a list of batches.
x = torch.randn(4096, 20)
data = (x, (x[:, 0] * x[:, 1] > 0).long())

# The mean over the examples of a batch: loss(outputs, targets), or loss(model, batch), for a Hugging Face model
#     loss = lambda model, batch: model(**batch).loss
loss = nn.functional.cross_entropy

# With the settings that you train with, and the batch size that they are for (a DataLoader tells its own).
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
batch_size = 32

# How many examples a run goes through, epochs times training set: a run that is short enough is then tried whole.
examples = 10 * 4096
'''
NAMES = ("model", "loss", "data", "optimizer")
SETTINGS = ("momentum", "beta1", "beta2", "eps", "weight_decay", "ema", "warmup_steps")


def main(arguments=None):
    """Run the command line on ``arguments`` (None: those of the process); return the exit status.

    >>> main(["rescale", "--lr", "0.1", "--batch", "256", "--to", "64", "--optimizer", "sgd"])
        B = 256  B = 64  rule
    lr  0.1      0.025   linear (Goyal 2017)
    0
    """
    options = _parser().parse_args(arguments)
    try:
        return {"advise": _advise, "init": _init, "rescale": _rescale}[options.command](options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130


def _parser():
    parser = argparse.ArgumentParser(prog="python -m batchlab", description="Batch sizes, measured.")
    commands = parser.add_subparsers(dest="command", required=True)
    advise = commands.add_parser(
        "advise",
        help="which batch size for a problem of your own",
        description="Measures the problem that FILE defines and says which batch size to train it with. "
        "FILE IS RUN AS PYTHON CODE, with all you may do: run no file that you don't trust.",
    )
    advise.add_argument("file", metavar="FILE", help="defines model, loss, data and optimizer, see init; or problem")
    advise.add_argument("--seconds", type=float, default=120, help="for all measurements (default: 120)")
    advise.add_argument("--memory", type=_bytes, help="what a step may take: 2G, 500M or bytes")
    advise.add_argument("--most", type=int, help="the largest batch to try")
    advise.add_argument("--objective", default="time", help="time (default), compute or deadline")
    advise.add_argument("--deadline", type=float, help="seconds that the run may take, with --objective deadline")
    advise.add_argument("--examples", type=float, help="how many the run is planned for (or FILE says so)")
    advise.add_argument("--branch", action="store_true", help="train on with larger batches too")
    advise.add_argument("--seed", type=int, default=0)
    advise.add_argument("--processor-time", action="store_true", help="time by the processor: where others use it too")
    advise.add_argument("--quiet", action="store_true", help="no progress")
    advise.add_argument(
        "--save", action="append", default=[], metavar="PATH", help=".html, .json or .txt; may be repeated"
    )
    init = commands.add_parser("init", help="write a commented problem file", description="Writes a template.")
    init.add_argument("file", metavar="FILE", nargs="?", default="my_problem.py")
    rescale = commands.add_parser("rescale", help="settings at another batch size", description="Moves settings.")
    rescale.add_argument("--lr", type=float, required=True)
    rescale.add_argument("--batch", type=int, required=True, help="the batch size that the settings are for")
    rescale.add_argument("--to", type=int, required=True, help="the new batch size")
    rescale.add_argument("--optimizer", required=True, help="sgd, adam or adamw")
    rescale.add_argument("--rule", default="auto", help="of lr: auto (default), none, sqrt, linear or gain")
    rescale.add_argument("--noise-scale", type=float, help="in examples, for the gain")
    for name in SETTINGS:
        rescale.add_argument(f"--{name.replace('_', '-')}", type=float)
    return parser


def _bytes(text):
    """A number of bytes with its unit: 2G, 500M, 1048576."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    unit = units.get(text[-1:].upper(), 1)
    try:
        return int(float(text[:-1] if unit > 1 else text) * unit)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of bytes such as 2G, 500M or 1048576") from None


def _advise(options):
    for path in options.save:
        if Path(path).suffix not in (".html", ".json", ".txt") or not Path(path).absolute().parent.is_dir():
            raise ValueError(
                f"--save = {path!r}: expected a name that ends in .html, .json or .txt, in a folder that is"
            )
    file = Path(options.file)
    if not file.is_file():
        raise ValueError(f"FILE = {options.file!r}: expected a file; `python -m batchlab init` writes one")
    beside = str(file.absolute().parent)
    sys.path.insert(0, beside)  # as Python itself does: the file may import what lies beside it
    try:
        return _advise_on(runpy.run_path(str(file), run_name="batchlab_problem"), file, options)
    finally:
        sys.path.remove(beside)


def _advise_on(found, file, options):
    from batchlab.advise import Problem, advise

    problem = found.get("problem")
    if not isinstance(problem, Problem):
        missing = [name for name in NAMES if name not in found]
        if missing:
            raise ValueError(f"FILE = {options.file!r}: expected it to define {', '.join(missing)} (or problem)")
        problem = Problem(*(found[name] for name in NAMES), found.get("batch_size"), found.get("takes", "auto"))
    report = advise(
        problem,
        seconds=options.seconds,
        memory=options.memory,
        most=options.most,
        objective=options.objective,
        deadline=options.deadline,
        examples=found.get("examples") if options.examples is None else options.examples,
        branch=options.branch,
        seed=options.seed,
        progress=not options.quiet,
        name=found.get("name", file.stem),
        clock=time.process_time if options.processor_time else time.perf_counter,
    )
    print(report)
    for path in options.save:
        report.save(path)
    return 0


def _init(options):
    with open(options.file, "x", encoding="utf-8") as file:  # never over a file that is there
        file.write(TEMPLATE)
    print(f"{options.file} is a problem that runs: fill in your own, then python -m batchlab advise {options.file}")
    return 0


def _rescale(options):
    from batchlab.rescale import rescale

    given = {"lr": options.lr} | {name: getattr(options, name) for name in SETTINGS}
    settings = {name: value for name, value in given.items() if value is not None}
    print(
        rescale(
            settings, options.batch, options.to,
            optimizer=options.optimizer, rule=options.rule, noise_scale=options.noise_scale,
        )
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
