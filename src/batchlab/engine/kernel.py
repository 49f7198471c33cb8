"""The C kernel ``lane/lane.c``: compiled for this processor in some seconds, once, and kept in a private folder."""

import atexit
import ctypes
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path

from batchlab.engine import files

SOURCE = Path(__file__).with_name("lane") / "lane.c"  # includes the others
FLAGS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
PROCESSORS = (["-march=native"], [])  # some compilers do not know their own processor
SECONDS_TO_COMPILE = 120  # it takes a few
FEATURES = {  # what /proc/cpuinfo calls a processor's make and what it can do, on x86, ARM, RISC-V, POWER and Z
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags", "features", "cpu implementer",
    "cpu architecture", "cpu variant", "cpu part", "cpu revision", "isa", "uarch", "cpu", "machine",
}  # fmt: skip


@lru_cache
def library():
    """The compiled kernel; None, after one warning, on a machine without a C compiler that works."""
    try:
        compiler = _compiler()
        folder, key = files.private(), _key(compiler)
        for path in folder.glob(f"lane-{key}-*.so") if folder else ():
            if (made := _read(path)) and path == _place(folder, key, made):
                return _declared(_loaded(made))
        with tempfile.TemporaryDirectory(prefix="batchlab-", ignore_cleanup_errors=True) as scratch:
            made = _compiled(compiler, Path(scratch))
        lib = _declared(_loaded(made))
    except OSError as error:
        warnings.warn(f"sweeps will be slower: {error}", RuntimeWarning, stacklevel=2)
        return None
    if folder:
        with suppress(OSError):  # on a full disk the next process compiles again
            files.write(_place(folder, key, made), made, mode=0o600)
            files.sweep_up(folder)
    return lib


def _place(folder, key, made):
    """The kernel's file, named by what it was made of and for, and by what it holds: damage shows."""
    return folder / f"lane-{key}-{sha256(made).hexdigest()[:32]}.so"


def _read(path):
    """A file's bytes; None where another user could have written them."""
    with suppress(OSError), open(path, "rb") as file:
        if files.is_private(os.fstat(file.fileno())):
            return file.read()


def _compiler():
    """The command as a list of words: $CC as a shell would split it, else the first of cc, gcc and clang there is."""
    try:
        own = shlex.split(os.environ.get("CC", ""), posix=os.name != "nt")  # on Windows, backslashes are no escapes
    except ValueError:  # a quotation mark without its twin
        own = []
    for words in (own, ["cc"], ["gcc"], ["clang"]):
        if words and (found := shutil.which(words[0])):
            return [found, *words[1:]]
    raise OSError("no C compiler found (looked for $CC, cc, gcc and clang)")


def _key(compiler):
    """A hash of the source, the flags, the compiler and the processor: a kernel may hold instructions that another
    processor lacks, and a home directory may be shared by several."""
    parts = [FLAGS, PROCESSORS, compiler, sys.platform, sys.maxsize, processor()]
    parts += [(path.name, path.read_bytes()) for path in sorted(SOURCE.parent.rglob("*.[ch]"))]
    for program in filter(None, map(shutil.which, compiler)):  # ccache and gcc in "ccache gcc"
        found = os.stat(program)
        parts.append((os.path.realpath(program), found.st_size, found.st_mtime_ns))
    return sha256(repr(parts).encode()).hexdigest()[:32]


@cache
def processor():
    """The processor's make and features, as a list of strings; where they are not told, the computer's name with it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return sorted({s for s in lines if s.partition(":")[0].strip().lower() in FEATURES}) or list(platform.uname())


def _compiled(compiler, scratch):
    target, told = scratch / "lane.so", scratch / "told"
    for options in PROCESSORS:
        status = _run([*compiler, *FLAGS, *options, str(SOURCE), "-o", str(target), "-lm"], told)
        if status == 0 and target.exists():
            return target.read_bytes()
        if status is None:
            raise OSError(f"{shlex.join(compiler)} had not compiled the kernel after {SECONDS_TO_COMPILE} seconds")
    why = told.read_text(encoding="utf-8", errors="replace").strip()[:300]
    raise OSError(f"{shlex.join(compiler)} could not compile the kernel: {why}")


def _run(command, told):
    """The exit status of a command, its output in the file ``told``; None if it hung, and was ended with its children.

    Its output goes to a file because a pipe would be waited for as long as any grandchild holds it.
    """
    with (
        open(told, "wb") as output,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        ) as process,
    ):
        try:
            return process.wait(SECONDS_TO_COMPILE)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:  # it hung, or the reader pressed Ctrl-C
                os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()


def _loaded(made):
    """Load a library from its bytes, as they were checked: on Linux from memory, which no mount can forbid.

    The memory's descriptor stays open, since the loader takes two libraries of one name for the same.
    """
    if hasattr(os, "memfd_create"):
        with suppress(OSError):  # no /proc, or a policy against it
            handle = os.memfd_create("batchlab")
            with open(handle, "wb", closefd=False) as file:
                file.write(made)
            return ctypes.CDLL(f"/proc/self/fd/{handle}")
    with tempfile.TemporaryDirectory(prefix="batchlab-", ignore_cleanup_errors=True) as scratch:
        path = Path(scratch) / "lane.so"
        path.write_bytes(made)
        return ctypes.CDLL(str(path))


def _declared(lib):
    pointer, whole = ctypes.c_void_p, ctypes.c_int
    lib.scratch_floats.argtypes, lib.scratch_floats.restype = [whole, whole, pointer], ctypes.c_long
    lib.scratch_of_tape.argtypes, lib.scratch_of_tape.restype = [pointer], ctypes.c_size_t
    for train, evaluate in ((lib.train, lib.evaluate), (lib.train_tape, lib.evaluate_tape)):
        train.argtypes = [*[pointer] * 5, whole, pointer, ctypes.c_double, pointer]
        evaluate.argtypes, evaluate.restype = [pointer] * 3, ctypes.c_double
    return lib


# --- What torch.compile keeps -------------------------------------------------------------------------------------


def keep_torch_apart():
    """Have ``torch.compile`` keep what it makes, and later unpickles and loads, where only this user can write.

    Left alone, it takes a folder in the shared /tmp whose name anyone can foretell. A folder that the reader chose
    (TORCHINDUCTOR_CACHE_DIR) stays. Triton's files lie inside it. Returns whether libraries can be loaded from there.
    """
    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if not chosen or (Path(chosen).parent, Path(chosen).name[:14]) == (Path(tempfile.gettempdir()), "torchinductor_"):
        home = files.private()
        name = f"inductor-{sha256(repr(processor()).encode()).hexdigest()[:16]}"  # it compiles for the processor too
        chosen = str(home / name) if home and _may_run(home) else _for_this_process()
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = chosen
        from torch._inductor import codecache  # it takes its folder for headers when it is imported, whatever is set

        codecache._HEADER_DIR = os.path.join(chosen, "headers")
        codecache._HEADER_LOCK_DIR = os.path.join(chosen, "headers", "locks")
    with suppress(OSError):
        os.makedirs(chosen, exist_ok=True)
        return _may_run(chosen)
    return False


@cache
def _for_this_process():
    folder = tempfile.mkdtemp(prefix="batchlab-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _may_run(folder):
    """Whether programs and libraries in ``folder`` may be run: not where it was mounted noexec."""
    return not (hasattr(os, "ST_NOEXEC") and os.statvfs(folder).f_flag & os.ST_NOEXEC)
