#!/bin/sh
# make gpu: what needs an NVIDIA GPU, without a network, in eight minutes where the build goes well: gpu.sh PYTHON [--try]
# Four steps, each with its own time limit and log, so that it can be stopped after any of them; where one fails, the
# others go on:
#   build      the extension with its CUDA kernels, for this machine's GPU, in place
#   tests      pytest -m gpu, of which at least tests/min-passed-gpu must pass
#   validate   every backend and dtype against float64
#   benchmark  benchmarks/run.py --suite gpu, which writes its results as it goes, of ops whose tests pass; with
#              UNTESTED=1 of all that agree with float64, and every table says that its tests were not run
#   sanitize   a few GPU tests under compute-sanitizer (memcheck, racecheck); not among the four, STEPS=sanitize asks
# STEPS chooses some of them; LOGS and RESULTS say where they write. --try runs the steps on the CPU, on small sizes,
# to test this script.
set -u

python=$1
try=${2:-}
steps=${STEPS:-build tests validate benchmark}
logs=${LOGS:-build/gpu}
results=${RESULTS:-benchmarks/results}
cd "$(dirname "$0")/.." || exit 1
mkdir -p "$logs"
: >"$logs/summary.txt"
failed=0
untested=${UNTESTED:+--untested}
# Where this runs in the background SIGINT is ignored, and would be by all that it starts.
heeding=
env --default-signal=INT true 2>/dev/null && heeding="env --default-signal=INT"
# An interpreter that a distribution marks as its own is used all the same: nothing is installed but a link to here.
export PYTHONUNBUFFERED=1 PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore

capability=$("$python" -c 'import torch; print(*torch.cuda.get_device_capability(), sep=".")' 2>"$logs/machine.txt")
if [ -z "$capability" ] && [ "$try" != --try ]; then
    tail -n 1 "$logs/machine.txt" >&2
    echo "gpu.sh: $python has no torch with CUDA that sees an NVIDIA GPU (make gpu PYTHON=..., VENV=...)" >&2
    exit 1
fi

{
    date
    nvidia-smi
    "$python" -c 'import sys, torch, triton; print(sys.version, torch.__version__, torch.version.cuda, triton.__version__)'
    "$python" -m pip list --format=freeze
} >>"$logs/machine.txt" 2>&1

note() {
    echo "$*" | tee -a "$logs/summary.txt"
}

# step NAME SECONDS COMMAND...: its output goes to a log; what the log ends with is shown.
step() {
    name=$1
    limit=$2
    shift 2
    begin=$(date +%s)
    # As by Ctrl-C at first, so that what is known by then is still said.
    timeout -s INT -k 10 "$limit" $heeding "$@" >"$logs/$name.log" 2>&1
    status=$?
    took=$(($(date +%s) - begin))
    case $status in
    0) note "$name: ok, $took s" ;;
    124 | 137) note "$name: STOPPED after its $limit s ($logs/$name.log)" ;;
    *) note "$name: FAILED, status $status, $took s ($logs/$name.log)" ;;
    esac
    return $status
}

build() {
    export TORCH_CUDA_ARCH_LIST="$capability" MAX_JOBS="${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)}"
    install="$python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --no-index -e ."
    # Without the CUDA kernels, or without any, the other steps still have something to say.
    step build 120 env XMEMK_BUILD_CUDA=1 $install && return 0
    failed=1
    tail -n 25 "$logs/build.log"
    step build-without-cuda 90 env XMEMK_BUILD_CUDA=0 $install && return 0
    step build-python-only 30 env XMEMK_BUILD_CPP=0 $install
}

tests() {
    if [ "$try" = --try ]; then least=0; else least=$(cat tests/min-passed-gpu); fi
    # By file: the others may need packages that are not here.
    files=$(grep -lE 'mark\.gpu|^from gpu import' tests/*/test_*.py)
    beside=
    # A cold cache of compiled kernels takes longer than the tests; processes may share a GPU.
    "$python" -c 'import xdist' 2>/dev/null && beside="-n 8 --dist worksteal"
    [ "$try" = --try ] && beside=
    step tests 130 "$python" -m pytest -m gpu -q $beside --maxfail=25 --min-passed="$least" --tb=short \
        --durations=5 --junitxml="$logs/tests.xml" $files || failed=1
    tail -n 40 "$logs/tests.log"
}

sanitize() {
    files="tests/kernels/test_gpu_read.py tests/kernels/test_gpu_selection.py"
    chosen="segments_read_as_one_memory or affinity_and_readout or batches_and_strides or test_consolidate"
    for tool in memcheck racecheck; do
        if [ "$try" = --try ]; then check=; else check="compute-sanitizer --tool $tool --error-exitcode 9"; fi
        step "$tool" 300 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 $check "$python" -m pytest -m gpu -q -k "$chosen" $files ||
            failed=1
        tail -n 15 "$logs/$tool.log"
    done
}

validate() {
    if [ "$try" = --try ]; then where="--device cpu --quick --backend torch"; else where="--device cuda"; fi
    step validate 50 "$python" -m xmemk validate $where --json || failed=1
    "$python" - "$logs/validate.log" <<'PYTHON'
import json, sys
text = open(sys.argv[1]).read()
start = text.find("{\n")
rows = json.loads(text[start : text.rfind("}") + 1])["rows"] if start >= 0 else []
for row in rows:
    if not row["unavailable"]:
        verdict = "ok" if row["passed"] else "FAILED " + row["failures"][0]
        print(f"{row['op']:18} {row['backend']:7} {row['dtype']:9} {row['worst']:.3f} of what is allowed  {verdict}")
PYTHON
}

benchmark() {
    if [ "$try" = --try ]; then how="--device cpu --try --op evict_lfu"; else how="--device cuda --seconds 140"; fi
    step benchmark 180 "$python" benchmarks/run.py --suite gpu $how $untested --results "$results" || failed=1
    cat "$logs/benchmark.log"
}

for one in $steps; do
    case $one in
    build | tests | validate | benchmark | sanitize) $one ;;
    *)
        echo "gpu.sh: STEPS: wanted some of build, tests, validate, benchmark, sanitize, got $one" >&2
        exit 1
        ;;
    esac
done
echo
cat "$logs/summary.txt"
exit $failed
