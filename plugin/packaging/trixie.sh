#!/usr/bin/env bash
# Tests the feature `analytics` on Debian 13, which has GStreamer 1.26, from any Debian machine: as root, with debootstrap and
# Rust installed. FOLDER gets the Debian root (2.6 GB), which the next run uses again.
#   plugin/packaging/trixie.sh FOLDER
set -euo pipefail
folder=${1:?the folder for the Debian root, which is made if it is not there}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
cd "$(dirname "$0")/../.."

if [ ! -e "$folder/etc/apt/apt.conf.d/00host" ]; then
    debootstrap --variant=minbase trixie "$folder" "$mirror"
    # How this machine reaches the mirror.
    apt-config dump Acquire | grep -E '^Acquire::(http|https|Check)' >"$folder/etc/apt/apt.conf.d/00host" || true
fi
chroot "$folder" apt-get update
DEBIAN_FRONTEND=noninteractive chroot "$folder" apt-get install -y --no-install-recommends \
    gcc libc6-dev pkg-config libgstreamer1.0-dev libgstreamer-plugins-base1.0-dev libgstreamer-plugins-bad1.0-dev \
    libgstrtspserver-1.0-dev gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-plugins-good \
    gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly fonts-dejavu-core
mkdir -p "$folder/cargo" "$folder/rustup" "$folder/diad"

cargo fetch --locked
# The mounts are in a namespace of their own: they end with the tests.
cargo=${CARGO_HOME:-$HOME/.cargo} rustup=${RUSTUP_HOME:-$HOME/.rustup} folder=$folder unshare --mount bash -euc '
    for mount in "$cargo:cargo" "$rustup:rustup" "$PWD:diad" /proc:proc /dev:dev; do
        mount --rbind "${mount%:*}" "$folder/${mount##*:}"
    done
    exec env -i HOME=/root PATH=/cargo/bin:/usr/sbin:/usr/bin:/bin CARGO_HOME=/cargo RUSTUP_HOME=/rustup \
        CARGO_TARGET_DIR=/diad/target/trixie chroot "$folder" sh -euc "
            cd /diad
            cargo test --locked --offline -p gst-plugin-diad --no-default-features --features analytics \
                --test element --test pipelines -- analytics
        "
'
