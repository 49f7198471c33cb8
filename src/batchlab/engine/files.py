"""Files that are whole or not there at all, and a folder that no other user can write to."""

import os
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path

PART = ".batchlab-{pid}-{chance}.part"  # what a file is called while it is written, by this package alone
PARTS = re.compile(r"\.batchlab-\d+-[0-9a-f]{16}\.part")
SECONDS_TO_WRITE = 3600  # a part that is older was left by a process that was killed


def write(path, data, mode=0o666):
    """Write ``data`` (bytes) under another name and rename it, which a file system does in one go.

    A process killed at any moment leaves no half of a file under ``path``. The mode is subject to the umask, as it is
    for other files (``tempfile`` would make them readable to their owner alone). Raises OSError.
    """
    part = path.with_name(PART.format(pid=os.getpid(), chance=secrets.token_hex(8)))
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def sweep_up(folder):
    """Remove the parts that killed processes left in ``folder``: this package's, and nothing else."""
    for path in folder.iterdir():
        with suppress(OSError):  # another's file, or one that was just removed
            if PARTS.fullmatch(path.name) and path.stat().st_mtime < time.time() - SECONDS_TO_WRITE:
                path.unlink()


def private():
    """This user's cache folder of batchlab, made if need be; None where others can write to it, or it can't be made.

    It is $XDG_CACHE_HOME/batchlab, by default ~/.cache/batchlab.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME", "")
        folder = (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "batchlab"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if is_private(folder.stat()) else None
    except (OSError, RuntimeError):  # no home, or not ours
        return None


def is_private(stat):
    """Whether a file or folder is this user's, and no other's to write (Windows keeps a user's profile so itself)."""
    return not hasattr(os, "getuid") or (stat.st_uid == os.getuid() and not stat.st_mode & 0o022)
