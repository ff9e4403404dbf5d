#!/bin/sh
# Sets up an environment for xmemk: setup.sh PYTHON VENV EXTRA PIP_ARGS
# An environment that has all it needs is used as it is, without a network; what is missing comes in pinned versions.
set -eu

python=$1
venv=$2
extra=$3
pip_args=$4

if [ -n "$venv" ]; then
    if [ ! -x "$venv/bin/python" ]; then
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
            echo "xmemk needs Python 3.10 or newer; $python is $("$python" --version 2>&1). Choose another: make PYTHON=..." >&2
            exit 1
        }
        echo "making the environment $venv"
        "$python" -m venv "$venv"
    fi
    python=$venv/bin/python
fi

requirements=$("$python" tools/requirements.py "$extra")
# shellcheck disable=SC2086  # words are wanted
if ! "$python" -m pip install --quiet --no-index $requirements >/dev/null 2>&1; then
    echo "installing the packages that are missing (pinned in constraints.txt)"
    "$python" -m pip install --quiet --disable-pip-version-check -c constraints.txt $pip_args $requirements
fi

if [ "$extra" = dev ]; then
    echo "building and installing xmemk (a minute)"
    "$python" -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --no-index -e .
    # setuptools installs an import hook, since kernels/ and benchmarks/ lie outside of xmemk/. Type checkers and
    # editors look for a folder instead: one that holds a link to the package and nothing else, so that the
    # checkout's other folders do not become modules.
    "$python" -c 'import pathlib, sysconfig
site = pathlib.Path(sysconfig.get_path("purelib"))
link = site / "xmemk_source" / "xmemk"
link.parent.mkdir(exist_ok=True)
link.unlink(missing_ok=True)
link.symlink_to(pathlib.Path.cwd() / "xmemk")
(site / "xmemk_source.pth").write_text(f"{link.parent}\n")'
fi
