#!/bin/sh
# The C++ operators compiled for arm64 and run under qemu-user: arm64.sh TORCH ROOT [LIBRARIES]
#
# TORCH      an unpacked torch wheel for aarch64 (its torch/include and torch/lib); 2.7.1 from PyPI is one without CUDA:
#            pip download --no-deps --platform manylinux_2_28_aarch64 --only-binary=:all: --python-version 3.11 \
#            torch==2.7.1
# ROOT       a folder with arm64's libc6, libstdc++6, libgcc-s1 and libgomp1: /usr/aarch64-linux-gnu, where Debian's
#            cross compiler brings them
# LIBRARIES  folders of what that torch loads beside its own, by colons: its torch.libs, and Debian's zlib1g of arm64
#            unpacked (a CUDA build: libcudart, libcupti)
#
# Needs Debian's g++-aarch64-linux-gnu and qemu-user, or g++ and nothing else on an arm64 machine.
set -eu

torch=$1
root=$2
libraries=$torch/torch/lib${3:+:$3}
out=build/arm64
compiler=${CXX:-aarch64-linux-gnu-g++}
flags="-std=c++20 -O2 -fopenmp -Icsrc -I$out -I$torch/torch/include"
cd "$(dirname "$0")/.."
mkdir -p $out
rm -f $out/main.o # the schemas are in it
python3 - >$out/schemas.inc <<'END'
import ast, pathlib
for path in sorted(pathlib.Path("xmemk/operators").glob("*.py")):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("define", "LIBRARY.define"):
            if isinstance(node.args[0], ast.Constant):  # library.py hands on what it is given
                print(f'SCHEMA("{node.args[0].value}")')
END
for source in csrc/cpu/*.cpp tests/cpu_cross/main.cpp; do
    object=$out/$(basename "$source" .cpp).o
    [ "$object" -nt "$source" ] && continue
    echo "$source"
    # shellcheck disable=SC2086  # words are wanted
    $compiler $flags -c "$source" -o "$object"
done
$compiler -fopenmp $out/*.o -o $out/cpu_cross -L"$torch/torch/lib" -ltorch_cpu -lc10 -Wl,--allow-shlib-undefined
export LD_LIBRARY_PATH="$libraries"
if [ "$(uname -m)" = aarch64 ]; then exec $out/cpu_cross; fi
exec qemu-aarch64 -L "$root" -E LD_LIBRARY_PATH="$libraries" -E OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" $out/cpu_cross
