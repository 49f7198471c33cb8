"""Compiling the C kernel: once a machine and processor, in a private folder, by any compiler that works or none."""

import ctypes
import itertools
import os
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pandas
import pytest
from test_store import a_run
from test_sweep import assert_equals_fit
from torch._inductor import codecache

import batchlab
from batchlab import data, models, sweep
from batchlab.engine import choice, files, kernel, native
from batchlab.engine import sweep as sweeping
from batchlab.engine.plan import plan

SRC = Path(batchlab.__file__).parents[1]
COMPILER = kernel._compiler()
NAMES = ("scratch_floats", "train", "evaluate", "scratch_of_tape", "train_tape", "evaluate_tape", "answer")
STUB = "".join(f"int {name}(void) {{ return 7; }}\n" for name in NAMES)
WRAPPER = """
import os, subprocess, sys, time
{before}
with open({log!r}, "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
sys.exit(subprocess.run({compiler!r} + [word for word in sys.argv[1:] if word != "--counted"]).returncode)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and no library loaded yet; on leaving, the real one is back."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kernel.library.cache_clear()
    yield tmp_path / "cache" / "batchlab"
    kernel.library.cache_clear()


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A small source in place of the kernel's, since compiling that takes seconds."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "lane.c").write_text(STUB)
    monkeypatch.setattr(kernel, "SOURCE", tmp_path / "source" / "lane.c")
    return tmp_path / "source" / "lane.c"


def wrapped(folder, before=""):
    """A command that compiles, and a function that tells how often it did."""
    script, log = folder / "a compiler.py", folder / "calls"
    script.touch(mode=0o755)  # a program, as far as can be seen
    script.write_text(WRAPPER.format(before=before, log=str(log), compiler=COMPILER))
    return shlex.join(
        [sys.executable, str(script), "--counted"]
    ), lambda: log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def calls(tmp_path, monkeypatch):
    command, told = wrapped(tmp_path)
    monkeypatch.setenv("CC", command)
    return told


def load():
    """Load the library as a new process would, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lib = kernel.library.__wrapped__()
    assert lib.train is not None
    return lib


def costs_one_warning(match):
    """Two sweeps give the stacked model's table, and one warning between them."""
    run = a_run()
    want = sweep(run, lr=[0.01, 0.1], seed=[0, 1], engine="stacked").drop(columns="seconds")
    with pytest.warns(RuntimeWarning, match=match) as caught:
        got = [sweep(run, lr=[0.01, 0.1], seed=[0, 1]).drop(columns="seconds") for _ in range(2)]
    assert len(caught) == 1
    for table in got:
        pandas.testing.assert_frame_equal(table, want)


# ---------------------------------------------------------------- the compiler


def test_cc_is_split_as_a_shell_would(calls, stub):
    load()
    assert len(calls()) == 1 and calls()[0].startswith("--counted -O3")


def test_a_quotation_mark_without_its_twin_is_no_compiler(monkeypatch):
    monkeypatch.setenv("CC", "gcc '")
    assert kernel._compiler() == COMPILER


def test_a_compiler_that_does_not_know_its_processor_is_asked_again_without(tmp_path, monkeypatch, stub):
    command, told = wrapped(tmp_path, "'-march=native' in sys.argv and sys.exit(1)")
    monkeypatch.setenv("CC", command)
    load()
    assert len(told()) == 1 and "-march" not in told()[0]


def test_no_compiler_costs_one_warning(monkeypatch):
    monkeypatch.setattr(kernel.shutil, "which", lambda name: None)
    costs_one_warning("no C compiler")


@pytest.mark.parametrize(
    ("before", "match"),
    [("sys.exit('no licence left')", "no licence left"), ("sys.exit(0)", "could not compile"),
     ("open(sys.argv[sys.argv.index('-o') + 1], 'w').write('junk'); sys.exit(0)", "sweeps will be slower")],
    ids=["fails", "makes nothing", "makes junk"],
)  # fmt: skip
def test_a_compiler_that_fails_costs_one_warning(tmp_path, monkeypatch, cache, before, match):
    monkeypatch.setenv("CC", wrapped(tmp_path, before)[0])
    costs_one_warning(match)
    assert not list(cache.glob("*.so"))


def test_a_compiler_that_is_no_program_costs_one_warning(tmp_path, monkeypatch):
    (tmp_path / "cc").write_bytes(b"\x7fELF but not quite")
    (tmp_path / "cc").chmod(0o755)
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    costs_one_warning("sweeps will be slower")


def test_a_compiler_that_hangs_is_ended_with_its_children_and_costs_one_warning(tmp_path, monkeypatch):
    hang = (
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"with open({str(tmp_path / 'child')!r}, 'w') as file: file.write(str(child.pid))\n"
        "time.sleep(600)"
    )
    monkeypatch.setenv("CC", wrapped(tmp_path, hang)[0])
    monkeypatch.setattr(kernel, "SECONDS_TO_COMPILE", 3)
    began = time.monotonic()
    costs_one_warning("after 3 seconds")
    assert time.monotonic() - began < 60  # it was waited for once, not 600 seconds
    if os.name == "posix":
        assert ended(int((tmp_path / "child").read_text()))


def ended(process):
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        status = Path(f"/proc/{process}/stat")
        if status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True  # dead, and nobody has asked how
        time.sleep(0.1)
    return False


# ---------------------------------------------------------------- the private folder


def test_the_kernel_is_compiled_once_and_kept_where_only_its_user_may_write(calls, stub, cache):
    for _ in range(3):
        load()
    assert len(calls()) == 1 and len(list(cache.iterdir())) == 1
    if os.name == "posix":
        assert cache.stat().st_mode & 0o777 == 0o700
        assert next(cache.iterdir()).stat().st_mode & 0o077 == 0


def test_a_sweep_on_two_processes_compiles_once(tmp_path, monkeypatch):
    command, told = wrapped(tmp_path, "sys.argv[sys.argv.index('-O3')] = '-O1'")  # sooner
    monkeypatch.setenv("CC", command)
    code = (
        "from test_store import a_run\nfrom batchlab import sweep\n"
        "sweep(a_run(), batch_size=[5, 10, 20, 30], seed=range(40), lr=[0.01, 0.1], n_jobs=2, engine='native')"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(SRC), str(Path(__file__).parent)])}
    subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", code], env=environment, check=True)
    assert len(told()) == 1


def test_processes_that_compile_at_once_do_not_clash(tmp_path, stub, cache):
    code = (
        f"from pathlib import Path\nfrom batchlab.engine import kernel\nkernel.SOURCE = Path({str(stub)!r})\n"
        "assert kernel.library().answer() == 7"
    )
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    command = [sys.executable, "-W", "error", "-c", code]
    with subprocess.Popen(command, env=environment) as one, subprocess.Popen(command, env=environment) as other:
        assert [one.wait(), other.wait()] == [0, 0]
    assert all(path.suffix == ".so" for path in cache.iterdir())
    load()


@pytest.mark.parametrize("damage", ["truncated", "foreign", "others may write"])
def test_a_file_that_is_not_what_was_compiled_is_made_again(calls, stub, cache, damage):
    load()
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    if damage == "others may write" and os.name == "posix":
        file.chmod(0o666)
    else:
        file.write_bytes({"truncated": whole[:1000]}.get(damage, b"\x7fELF something else"))
    load()
    assert len(calls()) == 2 and file.read_bytes() == whole
    load()
    assert len(calls()) == 2


def other_source(stub, monkeypatch):
    stub.with_name("part.h").write_text("/* included by lane.c, say */")


def other_flags(stub, monkeypatch):
    monkeypatch.setattr(kernel, "FLAGS", ("-O1", *kernel.FLAGS[1:]))


def other_processor(stub, monkeypatch):
    monkeypatch.setattr(kernel, "processor", lambda: ["flags : sse2"])


def other_compiler(stub, monkeypatch):
    monkeypatch.setenv("CC", f"{os.environ['CC']} -DANOTHER")


def other_version(stub, monkeypatch):
    """Of a program that is not the first word of CC, as in "ccache gcc"."""
    script = shlex.split(os.environ["CC"])[1]
    os.utime(script, (1, 1))


@pytest.mark.parametrize("change", [other_source, other_flags, other_processor, other_compiler, other_version])
def test_what_was_compiled_from_or_for_something_else_is_not_loaded(calls, stub, cache, monkeypatch, change):
    load()
    change(stub, monkeypatch)
    load()
    assert len(calls()) == 2 and len(list(cache.iterdir())) >= 1
    load()
    assert len(calls()) == 2


def test_the_processor_is_told_by_its_make_and_features_and_by_nothing_that_changes():
    told = kernel.processor.__wrapped__()
    assert told == kernel.processor.__wrapped__() and told
    if Path("/proc/cpuinfo").exists():
        text = " ".join(told).lower()
        assert "flags" in text or "features" in text or "isa" in text or "cpu" in text
        assert "mhz" not in text and "bogomips" not in text


def not_ours(cache, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: cache.stat().st_uid + 1, raising=False)


def open_to_all(cache, monkeypatch):
    cache.chmod(0o777)


def a_file(cache, monkeypatch):
    cache.rmdir()
    cache.touch()


def homeless(cache, monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)


@pytest.mark.parametrize("trouble", [not_ours, open_to_all, a_file, homeless])
def test_a_folder_that_is_not_private_is_neither_read_nor_written(calls, stub, cache, monkeypatch, trouble):
    cache.mkdir(parents=True)
    if os.name == "nt" and trouble in (not_ours, open_to_all):
        return  # a profile's folders are private by other means
    trouble(cache, monkeypatch)
    assert files.private() is None
    for _ in range(2):
        load()
    assert len(calls()) == 2 and (cache.is_file() or not list(cache.iterdir()))


def test_a_relative_path_is_no_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert files.private() == tmp_path / "home" / ".cache" / "batchlab"


# ---------------------------------------------------------------- loading


def test_where_no_mounted_folder_may_hold_programs_the_kernel_is_loaded_from_memory(stub, monkeypatch):
    """A file on a mount with noexec cannot be mapped as code; memory can, on Linux."""
    real = ctypes.CDLL

    def noexec(path):
        if not path.startswith("/proc/self/fd/"):
            raise OSError(f"{path}: failed to map segment from shared object")
        return real(path)

    monkeypatch.setattr(ctypes, "CDLL", noexec)
    if hasattr(os, "memfd_create"):
        assert load().answer() == load().answer() == 7
    else:
        with pytest.warns(RuntimeWarning, match="failed to map"):
            assert kernel.library.__wrapped__() is None


def test_where_memory_may_not_hold_programs_the_kernel_is_loaded_from_a_file(stub, monkeypatch):
    def forbidden(name):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "memfd_create", forbidden, raising=False)
    assert load().answer() == 7


def test_two_kernels_in_one_process_are_two(stub):
    """The loader takes two libraries of one path for the same."""
    first = load()
    stub.write_text(STUB.replace("7", "8"))
    assert (load().answer(), first.answer()) == (8, 7)


def test_the_kernel_for_any_processor_equals_fit(monkeypatch):
    """Compiled without -march=native, a vector has four lanes on x86-64 and on ARM; the layout depends on that."""
    monkeypatch.setattr(kernel, "PROCESSORS", ([],))
    plain = kernel.library.__wrapped__()
    assert plain.vector_length() == 4
    monkeypatch.setattr(native, "library", lambda: plain)
    for sizes, batch_size in itertools.product([(40, 10), (40, 33, 17, 10)], [1, 3, 37, 150]):
        run = a_run(data=data.mnist1d(400, val=130, test=1), model=models.mlp(sizes), batch_size=batch_size)
        assert_equals_fit(native.train(plan(run), [run], 1)[0], run, 3e-5)


# ---------------------------------------------------------------- torch.compile's files


@pytest.fixture
def unset(monkeypatch):
    """No folder chosen for torch.compile; on leaving, all is as it was."""
    for name in ("_HEADER_DIR", "_HEADER_LOCK_DIR"):
        monkeypatch.setattr(codecache, name, None, raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is put back
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")


def resolved():
    """The folder that torch.compile takes."""
    return Path(codecache.cache_dir())


@pytest.mark.parametrize("before", [None, "torch's own"])
def test_torch_compile_unpickles_nothing_from_a_shared_folder(cache, unset, before):
    if before:  # what torch writes there itself when it is used first
        assert resolved().parent == Path(tempfile.gettempdir())
    assert kernel.keep_torch_apart()
    assert resolved().parent == Path(codecache._HEADER_DIR).parent.parent == cache
    if os.name == "posix":
        assert cache.stat().st_mode & 0o777 == 0o700


def test_torch_compile_has_a_folder_for_each_processor(unset, monkeypatch):
    kernel.keep_torch_apart()
    there = resolved()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setattr(kernel, "processor", lambda: ["flags : sse2"])
    kernel.keep_torch_apart()
    assert resolved() != there


def test_the_readers_own_folder_for_torch_compile_stays(tmp_path, unset, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torch"))
    assert kernel.keep_torch_apart() and resolved() == tmp_path / "torch"


def test_without_a_private_folder_torch_compile_has_one_for_this_process(unset, monkeypatch):
    monkeypatch.setattr(files, "private", lambda: None)
    assert kernel.keep_torch_apart()
    assert resolved().parent == Path(tempfile.gettempdir()) and resolved().name.startswith("batchlab-")
    if os.name == "posix":
        assert resolved().stat().st_mode & 0o777 == 0o700


def test_where_compiled_code_cannot_be_loaded_lanes_are_stacked(unset, monkeypatch):
    monkeypatch.setattr(kernel, "_may_run", lambda folder: False)
    monkeypatch.setattr(native, "library", lambda: True)
    assert choice.choose(a_run(), "compiled", 2, 50, 1, 2**30).engine == "stacked"


def test_torch_is_kept_apart_before_anything_is_compiled(monkeypatch):
    """In this process, and in whatever worker trains the lanes."""
    done = []
    monkeypatch.setattr(kernel, "keep_torch_apart", lambda: done.append("apart") or True)
    monkeypatch.setattr(native, "library", lambda: True)
    monkeypatch.setattr(sweeping.stacked, "train", lambda common, runs, compiled: done.append(f"compiled: {compiled}"))
    sweeping._train(0, None, [a_run()], "compiled", 1, None)
    assert done == ["apart", "compiled: True"]
