"""Finished lanes on disk: one small file each, named by all that decides it, whole or not there at all.

A file is a SHA-256 in hexadecimal, a newline, and JSON (in which floats survive exactly). The hash finds damage, not
malice: whoever can write to the folder can plant results.
"""

import json
import tempfile
import warnings
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from batchlab._check import fail
from batchlab.engine import files, keys
from batchlab.engine.identity import Unkeyable
from batchlab.engine.plan import Lane
from batchlab.training.run import metrics

ENGINES = ("native", "compiled", "stacked", "loop")
COLUMNS = ("step", "examples", "epoch", "seconds", "step_lr", "step_batch_size", "batch_loss")  # and the metrics
HOW_TO_KEY = "a function, or a frozen dataclass, made of Python code, numbers, strings and arrays"


class Store:
    """The lanes of one grid in a folder. What goes wrong with a file costs one warning and one lane, not the sweep.

    Raises ValueError where ``folder`` is no directory and cannot be made one.
    """

    def __init__(self, folder, grid):
        self.folder, self.columns = Path(folder), {*COLUMNS, *metrics(grid[0])}
        self.keyed, self.writes, self.unusable = True, True, {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fail("cache", str(folder), f"a directory ({error.strerror})")
        with suppress(OSError):  # one that may not be listed
            files.sweep_up(self.folder)
        try:
            self.common = keys.common(grid[0])
            self.weights = {run.seed: keys.weights(run) for run in {run.seed: run for run in grid}.values()}
        except Unkeyable as error:
            self.keyed = False
            self._warn(f"nothing is kept, since it cannot be known when results change: {error}. Give {HOW_TO_KEY}")

    def read(self, runs, engines):
        """The lanes kept of ``runs``, each as its engine trained it: a list, with None where there is none."""
        lanes = [self._read(self._path(*one)) for one in zip(runs, engines, strict=True)] if self.keyed else []
        for path, why in list(self.unusable.items())[:1]:
            more = f", and those of {len(self.unusable) - 1} more such files" if len(self.unusable) > 1 else ""
            self._warn(f"{path} {why}; its lane is trained again{more}")
        if None in lanes:
            try:
                tempfile.TemporaryFile(dir=self.folder).close()
            except OSError as error:
                self._nothing_is_kept(error)
        return lanes or [None] * len(runs)

    def write(self, run, engine, lane):
        """Keep a lane, if that can be done; the first time that it cannot, a warning says so."""
        if not self.keyed:
            return
        path, body = self._path(run, engine), json.dumps(asdict(lane)).encode()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # it may have been deleted meanwhile
            files.write(path, sha256(body).hexdigest().encode() + b"\n" + body)
        except OSError as error:
            if path not in self.unusable:
                self._nothing_is_kept(error)

    def read_choice(self, run):
        """The engine that an earlier sweep chose for the batch size of ``run``, or None."""
        try:
            engine = json.loads(self._choice(run).read_bytes())["engine"] if self.keyed else None
        except (OSError, ValueError, TypeError, LookupError):
            return None
        return engine if engine in ENGINES else None

    def write_choice(self, run, engine):
        """Keep the engine chosen for a batch size, for whatever rates and seeds are still to come."""
        if self.keyed:
            with suppress(OSError):  # the lanes, which are kept next, will say what is wrong
                files.write(self._choice(run), json.dumps({"engine": engine}).encode())

    def _choice(self, run):
        return self.folder / f"{keys.identity(chosen=(self.common, run.batch_size))[:40]}.engine"

    def _path(self, run, engine):
        return self.folder / f"{keys.name(self.common, self.weights[run.seed], run, engine)}.json"

    def _read(self, path):
        try:
            if path.exists() and not path.is_file():  # a pipe would be waited for
                self.unusable[path] = "is not a file"
                return None
            check, body = path.read_bytes().split(b"\n", 1)
            if check.decode() != sha256(body).hexdigest():
                raise ValueError
            return self._lane(body)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.unusable[path] = f"cannot be read ({error.strerror})"
        except (ValueError, TypeError, RecursionError):
            self.unusable[path] = "is damaged"

    def _lane(self, body):
        """The lane of a file's JSON; ValueError or TypeError where it is none of this sweep's."""
        lane = Lane(**json.loads(body))
        whole = all(type(row) is dict and set(row) == self.columns for row in lane.rows) and lane.rows
        if not whole or any(type(value) not in (int, float) for row in lane.rows for value in row.values()):
            raise ValueError
        if not type(lane.diverged) is type(lane.reached) is bool:
            raise ValueError
        return lane

    def _nothing_is_kept(self, error):
        if self.writes:
            self._warn(f"finished lanes cannot be kept in {self.folder} ({error.strerror}); the sweep goes on without")
        self.writes = False

    def _warn(self, text):
        warnings.warn(f"cache: {text}", RuntimeWarning, stacklevel=4)
