"""The C kernel ``lane/lane.c``: compiled when first needed, in a few seconds, for the processor at hand."""

import ctypes
import os
import shutil
import subprocess
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

FLAGS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
PROCESSORS = (["-march=native"], [])  # some compilers do not know their own processor


@lru_cache
def library():
    """The compiled kernel; None, after one warning, on a machine without a C compiler."""
    source = Path(__file__).with_name("lane") / "lane.c"  # includes the others
    compiler = next(filter(shutil.which, filter(None, (os.environ.get("CC"), "cc", "gcc", "clang"))), None)
    failure = "no C compiler found (looked for $CC, cc, gcc and clang)"
    if compiler:
        with tempfile.TemporaryDirectory(prefix="batchlab-", ignore_cleanup_errors=True) as folder:
            target = Path(folder) / "lane.so"
            for processor in PROCESSORS:
                command = [compiler, *FLAGS, *processor, str(source), "-o", str(target), "-lm"]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode == 0:
                    return _declared(ctypes.CDLL(str(target)))
            failure = f"{compiler} could not compile the kernel: {done.stderr.strip()[:300]}"
    warnings.warn(f"sweeps will be slower: {failure}", RuntimeWarning, stacklevel=2)
    return None


def _declared(lib):
    pointer, whole = ctypes.c_void_p, ctypes.c_int
    lib.scratch_floats.argtypes, lib.scratch_floats.restype = [whole, pointer], ctypes.c_long
    lib.train.argtypes = [*[pointer] * 5, whole, pointer, ctypes.c_double, pointer]
    lib.evaluate.argtypes, lib.evaluate.restype = [pointer] * 3, ctypes.c_double
    return lib
