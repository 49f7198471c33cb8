"""Finished lanes on disk: one small file each, named by what it holds, whole or not there at all.

A file is a SHA-256 in hexadecimal, a newline, and JSON (in which floats survive exactly). It is written under another
name and then renamed, which a file system does in one go: a process killed at any moment leaves no half of a file.
"""

import json
import os
import tempfile
import time
import warnings
from dataclasses import asdict, fields
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import torch

from batchlab._check import fail
from batchlab.engine.plan import Lane
from batchlab.training.dataset import fingerprint
from batchlab.training.step import device_of


@lru_cache
def _code():
    """A hash of the package's own code and of PyTorch's version: results of other code are other results."""
    digest = sha256(torch.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.[pc]*")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def names(runs, engine):
    """The file names of the lanes of one sweep: hashes of every argument, the data and the code.

    Raises ValueError where an argument's repr does not tell what it is (a lambda, say), because then two different
    sweeps would share their files.
    """
    parts = {}
    for field in fields(runs[0]):
        if field.name not in ("lr", "batch_size", "seed", "progress"):
            value = getattr(runs[0], field.name)
            parts[field.name] = fingerprint(value) if field.name == "data" else repr(value)
            if " at 0x" in parts[field.name]:
                fail(field.name, value, "with a cache, something whose repr says what it computes (a frozen dataclass)")
    common = repr((sorted(parts.items()), device_of(runs[0]).type, engine, _code()))
    return [sha256(f"{common} {r.batch_size} {r.lr!r} {r.seed}".encode()).hexdigest()[:40] for r in runs]


def opened(folder):
    """Return ``folder`` as a Path, made if need be; ValueError where it cannot be written to."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for left in folder.glob("*.part"):  # of processes that were killed while they wrote
            if left.stat().st_mtime < time.time() - 3600:
                left.unlink(missing_ok=True)
    except OSError as error:
        fail("cache", str(folder), f"a directory that can be written to ({error.strerror})")
    return folder


def read(folder, name):
    """The lane kept under this name, or None; None with a warning where the file is damaged."""
    path = folder / f"{name}.json"
    try:
        check, body = path.read_text(encoding="utf-8").split("\n", 1)
        if check != sha256(body.encode()).hexdigest():
            raise ValueError
    except FileNotFoundError:
        return None
    except (ValueError, OSError):
        warnings.warn(f"cache: {path} is damaged; its lane is trained again", RuntimeWarning, stacklevel=3)
        return None
    return Lane(**json.loads(body))


def write(folder, name, lane):
    """Keep a lane. Returns whether that worked: a full disk is a warning, and costs the file but not the sweep."""
    body = json.dumps(asdict(lane))
    try:
        handle, part = tempfile.mkstemp(suffix=".part", dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(f"{sha256(body.encode()).hexdigest()}\n{body}")
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, folder / f"{name}.json")
        except OSError:
            os.unlink(part)
            raise
    except OSError as error:
        warnings.warn(
            f"cache: nothing more is kept in {folder} ({error.strerror}); the sweep goes on without",
            RuntimeWarning,
            stacklevel=3,
        )
        return False
    return True
