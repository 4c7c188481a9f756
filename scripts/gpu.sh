#!/usr/bin/env bash
# All that needs a GPU: its tests, its benchmarks and a study on CIFAR-10, with what they print in $1.
#
#   scripts/gpu.sh results/2026-12-01-gpu [CIFAR10_FOLDER [SPEED_RUN_SCRIPT]]
#
# CIFAR10_FOLDER has train*.parquet, test*.parquet and teachers/resnet56.safetensors; without it the
# study is of the digits. The machine may have torch already; wheels that it lacks are installed, from
# WHEELS (a folder) where that is set. Parts: PARTS="tests benchmarks study", a part that fails does
# not keep the next one from running.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:?where to put what is printed}
data=${2:-}
script=${3:-}
python=${PYTHON:-python3}
mkdir -p "$out"

find_links=()
[ -n "${WHEELS:-}" ] && find_links=(--no-index --find-links "$WHEELS")
"$python" -c 'import optuna, timm, fvcore, onnxscript, typer, pytest, hypothesis' 2>/dev/null ||
  grep -v -E '^(torch|torchvision|nvidia|triton|cuda)' requirements.lock.txt |
  "$python" -m pip install --quiet "${find_links[@]}" -r /dev/stdin || exit 1
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1

{
  date -u +%FT%TZ
  git rev-parse HEAD 2>/dev/null
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  "$python" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
} | tee "$out/machine.txt"

status=0
run() { # NAME COMMAND...: its output goes to the terminal and to $out/NAME.txt
  local name=$1
  shift
  echo "== $name: $*"
  "$@" 2>&1 | tee "$out/$name.txt" || { echo "== $name failed" && status=1; }
}

for part in ${PARTS:-tests benchmarks study}; do
  case $part in
    tests) run tests "$python" -m pytest -m gpu ;;
    benchmarks)
      for name in graph_step packed_on_gpu; do
        run "$name" "$python" -m benchmarks "$name" --json "$out/$name.json"
      done
      [ -n "$script" ] &&
        run speed_run "$python" -m benchmarks speed_run --script "$script" \
          ${data:+--data "$data"} --json "$out/speed_run.json"
      ;;
    study)
      if [ -n "$data" ]; then
        request=(--data "$data" --teacher cifar_resnet56 --epochs 20 --trials 30 --budget-mflops 20
          --teacher-weights "$data/teachers/resnet56.safetensors")
      else
        request=(--budget-ms 10)
      fi
      for workers in 1 auto; do
        run "study-workers-$workers" "$python" -m kdsearch run "${request[@]}" --device cuda \
          --workers "$workers" --out results/.gpu --name "workers-$workers"
        cp "results/.gpu/workers-$workers/front.json" "$out/workers-$workers.front.json"
      done
      ;;
    *) echo "there is no part $part" >&2 && exit 2 ;;
  esac
done
exit $status
