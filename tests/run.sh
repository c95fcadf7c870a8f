#!/usr/bin/env bash
# Runs all tests, with everything they need set up: `bash tests/run.sh`.
set -euo pipefail
cd "$(dirname "$0")/.."
export DIAD_CAMERAS=1
. tests/setup.sh
if cargo nextest --version >/dev/null 2>&1; then
    RUST_BACKTRACE=1 cargo nextest run --workspace --locked --no-fail-fast
else
    RUST_BACKTRACE=1 cargo test --workspace --locked --lib --bins --tests
fi
cargo test --workspace --locked --doc
