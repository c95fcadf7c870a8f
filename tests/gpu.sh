#!/usr/bin/env bash
# Runs the numerical tests on a GPU and measures a model there: `bash tests/gpu.sh [MODEL.diad]`. Without a GPU it fails.
set -euo pipefail
cd "$(dirname "$0")/.."
export DIAD_TEST_DEVICE="${DIAD_TEST_DEVICE:-cuda}"
bash .ci/cuda cargo test --release --locked --features cuda --test device -- --nocapture
diad() { bash .ci/cuda cargo run --release --locked --features cuda -- "$@"; }
model="${1:-target/gpu/demo.diad}"
[ -e "$model" ] || diad demo --out target/gpu
for precision in f32 f16 bf16; do
    diad bench --model "$model" --device "$DIAD_TEST_DEVICE" --precision "$precision" --batch 1,4,16
done
diad bench --model "$model" --device cpu
