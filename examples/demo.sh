#!/usr/bin/env bash
# From nothing to a judged part, with no data of yours: `bash examples/demo.sh [FOLDER]`.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/setup.sh
echo "Building (a few minutes the first time) ..."
cargo build --release --locked --workspace
exec target/release/diad demo --out "${1:-demo}"
