#!/usr/bin/env bash
# The package's tests and two notebooks as other processors would run them, and the C kernel's tests with every access to
# memory watched. Libraries choose their code by the processor; the variables below have them choose an older one's.
# `make portable` runs it; for another Python: PYTHON=path/to/python bash tests/portable.sh
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT

# Compilers that stand before the others on PATH: for the processor all of its family descend from, and with watches.
unset CC
cc=$(command -v cc)
mkdir "$tools/plain" "$tools/watching"
printf '#!/usr/bin/env bash\nexec %q "${@/-march=native/-O3}"\n' "$cc" >"$tools/plain/cc"
watches="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined"
printf '#!/usr/bin/env bash\nexec %q "$@" %s\n' "$cc" "$watches" >"$tools/watching/cc"
chmod +x "$tools"/*/cc

as() { # a name, then settings: the tests but those of clusters, which compute nothing of their own
  echo "as $1: ${*:2}"
  # a cache of its own: what was compiled for one processor, another cannot read
  env XDG_CACHE_HOME="$(mktemp -d -p "$tools")" "${@:2}" "$python" -m pytest --quiet -m "not site" \
    --numprocesses "${WORKERS:-2}" --dist loadscope --no-loadscope-reorder --ignore tests/test_clusters.py \
    tests src chapters/02-*.ipynb chapters/03-*.ipynb
}

newer=$("$python" -c 'from numpy._core import _multiarray_umath as m
print(*[name for name in m.__cpu_dispatch__ if m.__cpu_features__[name]])')
as "an old processor, one thread" OMP_NUM_THREADS=1 PATH="$tools/plain:$PATH" NPY_DISABLE_CPU_FEATURES="$newer" \
  OPENBLAS_CORETYPE=Nehalem ATEN_CPU_CAPABILITY=default DNNL_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE
as "one of ten years ago, two threads" OMP_NUM_THREADS=2 \
  OPENBLAS_CORETYPE=Haswell ATEN_CPU_CAPABILITY=avx2 DNNL_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2

asan=$(cc -print-file-name=libasan.so) ubsan=$(cc -print-file-name=libubsan.so)
if [[ $(uname) == Linux && -e $asan && -e $ubsan ]]; then
  echo "the kernel, watched"
  env OMP_NUM_THREADS=1 PATH="$tools/watching:$PATH" XDG_CACHE_HOME="$tools" LD_PRELOAD="$asan $ubsan" \
    ASAN_OPTIONS=detect_leaks=0 "$python" -m pytest --quiet --capture=no \
      tests/test_native.py tests/test_tape.py
else
  echo "left out: the kernel, watched (needs Linux and a compiler with the address and undefined-behaviour sanitizers)"
fi
