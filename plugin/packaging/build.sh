#!/usr/bin/env bash
# Builds the Debian packages diad, gstreamer1.0-diad and diad-line into target/debian, for the Debian or Ubuntu that it runs on:
#
#   bash plugin/packaging/build.sh
#
# With --cuda also diad-cuda, of what `bash .ci/cuda` has built; see src/guide/gpu.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/setup.sh
missing=""
command -v dpkg-shlibdeps >/dev/null 2>&1 || missing="$missing dpkg-dev"
command -v help2man >/dev/null 2>&1 || missing="$missing help2man"
if [ -n "$missing" ]; then apt-get update -q && apt-get install -y --no-install-recommends $missing; fi
cargo deb --version >/dev/null 2>&1 || CARGO_PROFILE_DEV_DEBUG=0 cargo install cargo-deb --version 3.8.0 --locked --debug

cargo build --release --locked --workspace
made=target/release/packaging # where cargo deb looks
mkdir -p "$made" target/debian
rm -f target/debian/*.deb

# The licences of what is linked statically ask for no more than that their text goes along.
cargo tree --locked --workspace --edges normal --prefix none --format '{p} {l}' | grep -v -e '^$' -e '(/' |
    sed 's/ (\*)$//; s/ (proc-macro)//' | sort -u >"$made/crates"
while read -r name version licence; do
    printf '==== %s %s: %s\n\n' "$name" "${version#v}" "$licence"
    find "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/"$name-${version#v}" -maxdepth 1 -type f \
        \( -iname 'licen[cs]e*' -o -iname 'copying*' -o -iname 'notice*' \) -print0 | sort -z | xargs -0r cat
    echo
done <"$made/crates" | gzip -9n >"$made/crates.txt.gz"

# The manual pages are what --help says.
manual() { # NAME, what it is
    help2man --no-info --no-discard-stderr --name "$2" "target/release/$1" | gzip -9n >"$made/$1.1.gz"
}
manual diad "finds defects on a production line after learning from good parts only"
manual diad-run "inspection lines that keep running"

pack() { cargo deb --locked --no-build --no-strip --output target/debian "$@"; }
pack -p diad
pack -p gst-plugin-diad --multiarch same
pack -p gst-plugin-diad --variant line
if [ "${1:-}" = --cuda ]; then pack --quiet -p gst-plugin-diad --variant cuda; fi
