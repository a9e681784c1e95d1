#!/usr/bin/env bash
# Compile the byte path in place: the modules of mesh/compiled.py with mypyc, and the C module that
# encrypts whole buffers of TLS records.
# Skipped when there is no compiler, and when nothing changed since the last time.
# Everything works without it, with more CPU per byte; AMBIT_PURE=1 runs it uncompiled.
set -euo pipefail
cd "$(dirname "$0")/.."
py=${PYTHON:-.venv/bin/python}

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }

command -v "${CC:-gcc}" >/dev/null || { say "relay stays plain Python: no C compiler (apt install gcc libc6-dev)"; exit 0; }
include=$($py -c 'import sysconfig; print(sysconfig.get_paths()["include"])')
[ -e "$include/Python.h" ] || { say "relay stays plain Python: no $include/Python.h (apt install python3-dev)"; exit 0; }
printf '#include <openssl/evp.h>\n' | "${CC:-gcc}" -E - >/dev/null 2>&1 || { say "relay stays plain Python: no OpenSSL headers (apt install libssl-dev)"; exit 0; }
$py -c 'import mypyc' 2>/dev/null || { say "relay stays plain Python: no mypyc (pip install -e '.[dev]')"; exit 0; }

mapfile -t sources < <($py -c 'from mesh.compiled import MODULES; [print(m.replace(".", "/") + ".py") for m in MODULES]')
want=$({ cat "${sources[@]}" mesh/wire/_recordkey.c mesh/compiled.py scripts/compile_relay.sh; $py -c 'import sys, mypy.version; print(sys.version, mypy.version.__version__)'; } | sha256sum | cut -d' ' -f1)
library=$($py -c 'from mesh.compiled import library; print(library() or "")')
if [ -n "$library" ] && [ "$(cat build/relay/hash 2>/dev/null || true)" = "$want" ]; then
    touch "$library"  # a checkout gives sources new times without changing them
    exit 0
fi

say "compiling the relay with mypyc"
mkdir -p build/relay
$py - "${sources[@]}" >build/relay/log 2>&1 <<'PYTHON' || { cat build/relay/log >&2; say "relay stays plain Python: it did not compile"; exit 1; }
import sys
from mypyc.build import mypycify
from setuptools import Extension, setup
from mesh.compiled import GROUP

setup(
    name="ambit-relay",
    packages=[],
    py_modules=[],
    ext_modules=[
        *mypycify(sys.argv[1:], opt_level="3", debug_level="0", group_name=GROUP, target_dir="build/relay/c"),
        Extension("mesh.wire._recordkey", ["mesh/wire/_recordkey.c"], libraries=["crypto"], extra_compile_args=["-O2", "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-Wno-cast-function-type"]),
    ],
    script_args=["-q", "build_ext", "--build-temp", "build/relay/tmp", "--build-lib", "build/relay/lib"],
)
PYTHON
# The library goes first and comes last: without it the sources are used, so a process that starts
# in between never mixes the two forms.
[ -z "$library" ] || rm -f "$library"
(cd build/relay/lib && find . -name '*.so' ! -name '*__mypyc*' -print0 | while IFS= read -r -d '' so; do mv -f "$so" "../../../$so"; done)
mv -f build/relay/lib/*__mypyc*.so .
rm -rf build/relay/lib
echo "$want" >build/relay/hash
