#!/usr/bin/env bash
# Coverage-guided fuzzing, one target after the other: tests/fuzz/run.sh [SECONDS PER TARGET, 60] [TARGET...]
# New inputs go to target/fuzz/corpus/TARGET, what broke something to target/fuzz/found/TARGET, what was done to
# target/fuzz/TARGET.log. An input that broke something is kept in tests/fixtures/fuzz/TARGET once the cause is cured.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/setup.sh
command -v c++ >/dev/null || { echo "a C++ compiler is missing: apt-get install g++" >&2; exit 2; }
cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked

seconds=${1:-60}
shift || true
targets=${*:-config image import model card video}
export RUSTC_BOOTSTRAP=1 RAYON_NUM_THREADS=1
# Freed memory is kept for a while to catch uses of it; a quarter of a GiB of it would hide the target's own use.
export ASAN_OPTIONS="quarantine_size_mb=16:${ASAN_OPTIONS:-}"
cp Cargo.lock tests/fuzz/ # the versions that are shipped
place=(--fuzz-dir tests/fuzz --target-dir target/fuzz/build)
for target in $targets; do
    leaks=1
    case $target in
    # GStreamer's parser of caps loses what it has read of a text that it refuses; leaks of the plugin are what
    # GST_TRACERS=leaks is for.
    video) length=8192 more=() leaks=0 ;;
    config) length=4096 more=(configs) ;;
    image) length=16384 more=() ;;
    *) length=8192 more=() ;;
    esac
    [ -d "tests/fixtures/fuzz/$target" ] && more+=("tests/fixtures/fuzz/$target")
    mkdir -p "target/fuzz/corpus/$target" "target/fuzz/found/$target"
    # Time and memory of an input are bounded by the target itself; these are for what it cannot see.
    ASAN_OPTIONS="$ASAN_OPTIONS:detect_leaks=$leaks" \
    cargo fuzz run "${place[@]}" "$target" "target/fuzz/corpus/$target" "tests/fuzz/corpus/$target" "${more[@]}" -- \
        -dict="tests/fuzz/dictionaries/$target.dict" -artifact_prefix="target/fuzz/found/$target/" -max_len="$length" \
        -max_total_time="$seconds" -timeout=60 -rss_limit_mb=3072 -malloc_limit_mb=2048 -reload=0 -print_final_stats=1 \
        2>&1 | tee "target/fuzz/$target.log"
done
