#!/usr/bin/env bash
# Copyright 2026 The glip_hf authors. MIT licence.
# Every figure that needs a GPU, in at most 10 minutes: bash benchmarks/gpu.sh
# Rows go to benchmarks/results/ (RESULTS=DIR: elsewhere), all output to out/gpu/. A step that does not fit into the time
# left is named and left out, one that fails is named at the end, and both make the exit status 1.
# Not run on a GPU yet. TRY=1 runs the same steps with a tiny model on the CPU, to see that they run; PYTHON, LIMIT.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
LIMIT=${LIMIT:-600} # seconds
OUT=${OUT:-out/gpu}
RESULTS=${RESULTS:-benchmarks/results}
mkdir -p "$OUT"
common=(--device cuda --no-reference --runs 10 --warmup 3 --results "$RESULTS")
parity=(--device cuda --results "$RESULTS")
training=(--device cuda --runs 5 --warmup 2 --results "$RESULTS")
graph=(--graph) tested=tests/kernels/test_cuda_deform_conv.py
if [ -n "${TRY:-}" ]; then
    small=(--tiny --threads 1 --size 64 96 --results "$RESULTS")
    common=("${small[@]}" --no-reference --runs 1 --warmup 0 --memory-runs 0)
    parity=("${small[@]}" --tokens 12)
    training=("${small[@]}" --runs 1 --warmup 0 --memory-runs 0 --tokens 12)
    graph=() tested="$tested -k dispatch" # CUDA graphs are for GPUs
elif ! "$PYTHON" -c 'import torch; raise SystemExit(not torch.cuda.is_available())'; then
    echo "no GPU that PyTorch can use: TRY=1 bash benchmarks/gpu.sh runs the steps with a tiny model on the CPU" >&2
    exit 2
fi

failed=()
# step NAME SECONDS COMMAND...: at most that long, and not beyond LIMIT.
step() {
    local name=$1 seconds=$2 begun=$SECONDS
    shift 2
    if [ $((LIMIT - SECONDS)) -lt $((seconds / 3)) ]; then
        echo "left out, $((LIMIT - SECONDS)) s left: $name"
        failed+=("$name")
        return
    fi
    [ "$seconds" -le $((LIMIT - SECONDS)) ] || seconds=$((LIMIT - SECONDS))
    if timeout "$seconds" "$PYTHON" "$@" >"$OUT/$name.log" 2>&1; then
        echo "$name: $((SECONDS - begun)) s"
        grep -E '^(seconds|peak_memory|ratio|compiled|images_a_second|forms|.*_(difference|max|mean)) ?' "$OUT/$name.log" || tail -n 1 "$OUT/$name.log"
    else
        echo "FAILED after $((SECONDS - begun)) s: $name ($OUT/$name.log)"
        tail -n 3 "$OUT/$name.log"
        failed+=("$name")
    fi
}

# The most telling first: what is cut off at the end is the slowest to compile.
# shellcheck disable=SC2086
step kernels 90 -m pytest -q -p no:cacheprovider $tested
step parity 60 benchmarks/device_parity.py "${parity[@]}"
for dtype in float32 bfloat16; do
    for case in three coco80; do
        step "$case-$dtype" 60 benchmarks/latency.py --case "$case" --dtype "$dtype" "${graph[@]}" "${common[@]}"
    done
    step "training-$dtype" 90 benchmarks/training.py --dtype "$dtype" --batch 4 "${training[@]}"
done
step lvis-bfloat16 60 benchmarks/latency.py --case lvis --dtype bfloat16 "${common[@]}"
if [ -z "${TRY:-}" ]; then # minutes even for a tiny model
    step coco80-compiled 150 benchmarks/latency.py --case coco80 --dtype bfloat16 --compile default "${common[@]}"
    step coco80-compiled-graphs 150 benchmarks/latency.py --case coco80 --dtype bfloat16 --compile reduce-overhead "${common[@]}"
fi
echo "$SECONDS s; failed or left out: ${failed[*]:-none}"
[ ${#failed[@]} = 0 ]
