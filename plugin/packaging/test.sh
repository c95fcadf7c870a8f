#!/usr/bin/env bash
# Builds the packages and tries them as a user would: lintian, then a clean Debian 12 in which apt installs them, a model is taught,
# frames are inspected, an upgrade; then it is booted, and its systemd runs the service with a camera; then the purge. As root, with
# a mirror of Debian:
#
#   bash plugin/packaging/test.sh [--built]        --built: takes the packages in target/debian
set -euo pipefail
cd "$(dirname "$0")/../.."
say() { printf '\n== %s (%s)\n' "$1" "$(date +%T)"; }
fail() { printf 'packaging: error: %s\n' "$*" >&2 && exit 1; }

say "packages"
[ "${1:-}" = --built ] || bash plugin/packaging/build.sh
packages=(target/debian/*.deb)
[ "${#packages[@]}" -ge 3 ] || fail "target/debian: ${#packages[@]} packages, expected 3"
ls -l "${packages[@]}"
version=$(dpkg-deb --field target/debian/diad_*.deb Version)

missing=""
for tool in lintian debootstrap systemd-nspawn:systemd-container; do
    command -v "${tool%:*}" >/dev/null 2>&1 || missing="$missing ${tool#*:}"
done
if [ -n "$missing" ]; then apt-get update -q && apt-get install -y --no-install-recommends $missing; fi
say "lintian"
lintian --version
lintian --allow-root --display-info --fail-on error,warning,info "${packages[@]}"

say "a clean Debian 12"
clean=target/packaging/bookworm
if [ ! -d "$clean" ]; then
    mkdir -p target/packaging && rm -rf "$clean.part"
    debootstrap --variant=minbase bookworm "$clean.part" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$clean.log"
    mv "$clean.part" "$clean"
fi
root=target/packaging/root
rm -rf "$root"
cp -a "$clean" "$root"
cp /etc/resolv.conf "$root/etc/"
for package in "${packages[@]}"; do install -D "$package" "$root/packages/$(dpkg-deb --field "$package" Package).deb"; done
# Processes of its own and their /proc, which go away with the command.
in_root() {
    unshare --mount --pid --fork --mount-proc="$root/proc" chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
        LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"
}
as_diad() { in_root runuser -u diad -- "$@"; }
apt() {
    in_root apt-get --quiet --yes -o Dpkg::Options::=--force-unsafe-io "$@" >"$root.log" 2>&1 ||
        { tail -n 20 "$root.log" && fail "apt-get $*"; }
}
lines() { wc -l <"$root/$1"; }

say "installed by apt, without what is only recommended"
apt update
apt install --no-install-recommends systemd gstreamer1.0-tools
apt install --simulate /packages/diad-line.deb
for package in libaravis-0.8-0 gstreamer1.0-plugins-{good,bad,ugly}; do
    grep -q "^Inst $package " "$root.log" || fail "diad-line does not recommend $package"
done
apt install --no-install-recommends /packages/diad.deb /packages/gstreamer1.0-diad.deb /packages/diad-line.deb
plugin=usr/lib/$(gcc -print-multiarch)/gstreamer-1.0/libgstdiad.so
linked=$(in_root ldd /usr/bin/diad /usr/bin/diad-run "/$plugin")
case $linked in *"not found"*) fail "a library is missing: $linked" ;; esac

say "programs and plugin"
for program in diad diad-run; do
    [ "$(in_root "$program" --version)" = "$program ${version%-*}" ] || fail "$program --version is not ${version%-*}"
done
in_root gst-inspect-1.0 diadfilter | grep "Filename .*/${plugin#usr/}$"

say "the user and the folder"
in_root id diad
for group in video plugdev render; do in_root id --name --groups diad | grep -qw "$group" || fail "diad is not in $group"; done
in_root systemd-tmpfiles --create diad-line.conf # what systemd does at its start
[ "$(in_root stat --format %U:%a /var/lib/diad)" = diad:755 ] || fail "/var/lib/diad is not that of diad"

say "a model, taught in seconds by the user diad"
as_diad diad demo --config /usr/share/diad/configs/smoke.toml --images 12 --no-video --out /var/lib/diad/demo
in_root cp /var/lib/diad/demo/demo.diad /var/lib/diad/parts.diad

say "frames through the plugin, and through a line"
camera="videotestsrc num-buffers=20 ! video/x-raw,width=64,height=64"
as_diad sh -c "gst-launch-1.0 -q $camera ! diadfilter model=/var/lib/diad/parts.diad ! diadmeta2json ! filesink \
    location=/tmp/plugin.jsonl"
[ "$(lines tmp/plugin.jsonl)" = 20 ] || fail "20 frames, $(lines tmp/plugin.jsonl) results of the plugin"
cat >"$root/tmp/line.toml" <<EOF
schema = 1
state-dir = "/var/lib/diad"
http.listen = "off"
[[line]]
name = "test"
source = { launch = "$camera" }
model = "/var/lib/diad/parts.diad"
results = "/tmp/line.jsonl"
EOF
as_diad diad run /tmp/line.toml
[ "$(lines tmp/line.jsonl)" = 20 ] || fail "20 frames, $(lines tmp/line.jsonl) results of the line"
head -c 400 "$root/tmp/line.jsonl" && echo

say "the example"
as_diad diad validate /etc/diad/line.toml.example
as_diad diad run --print /etc/diad/line.toml.example

say "the service"
words=$(in_root systemd-analyze verify --man=no diad-line.service 2>&1) && [ -z "$words" ] || fail "systemd-analyze verify: $words"
in_root systemd-analyze security --offline=yes --no-pager --threshold=30 diad-line.service | tee "$root.security" | tail -n 1
[ "$(in_root systemctl is-enabled diad-line || true)" = disabled ] || fail "the service is enabled after the installation"
in_root systemctl --quiet enable diad-line

say "the build for GPUs, with scripts in its place"
mkdir -p "$root/usr/lib/diad/cuda"
for program in diad diad-run; do
    printf '#!/bin/sh\nif [ "$*" = --version ]; then echo %s; else echo "GPU: $*"; fi\n' "'$program ${version%-*}'" \
        >"$root/usr/lib/diad/cuda/$program"
    chmod 755 "$root/usr/lib/diad/cuda/$program"
done
[ "$(in_root diad inspect x.diad)" = "GPU: inspect x.diad" ] || fail "diad does not hand over"
[ "$(in_root diad-run validate x.toml)" = "GPU: validate x.toml" ] || fail "diad-run does not hand over"
in_root env DIAD_CUDA=off diad inspect /var/lib/diad/parts.diad | head -n 3
in_root env DIAD_CUDA=off diad-run validate /etc/diad/line.toml.example
rm -r "$root/usr/lib/diad"

say "an upgrade, with an example that both sides have changed"
echo "# changed here" >>"$root/etc/diad/line.toml.example"
dpkg-deb --raw-extract target/debian/diad-line_*.deb "$root.upgrade"
sed -i "s/^Version: .*/Version: $version+test/" "$root.upgrade/DEBIAN/control"
echo "# changed there" >>"$root.upgrade/etc/diad/line.toml.example"
dpkg-deb --root-owner-group --build "$root.upgrade" "$root/packages/upgrade.deb" >/dev/null
rm -r "$root.upgrade"
apt install -o Dpkg::Options::=--force-confold --no-install-recommends /packages/upgrade.deb
[ "$(in_root dpkg-query --show --showformat '${Version}' diad-line)" = "$version+test" ] || fail "not upgraded"
[ "$(tail -n 1 "$root/etc/diad/line.toml.example")" = "# changed here" ] || fail "the upgrade lost a changed file"
[ "$(in_root systemctl is-enabled diad-line || true)" = enabled ] || fail "the upgrade disabled the service"

say "booted: the service with a camera, an encoder and an archive"
apt install --no-install-recommends systemd-sysv dbus aravis-tools libaravis-0.8-0 gstreamer1.0-plugins-{good,ugly}
cat >"$root/etc/diad/line.toml" <<EOF
schema = 1
state-dir = "/var/lib/diad"
[[line]]
name = "cap"
source = { aravis = "Aravis-Fake-GV01", format = "GRAY8", width = 128, height = 128, framerate = 10 }
model = "/var/lib/diad/parts.diad"
results = "cap.jsonl"
archive = { sample-every = 5 }
output = "videoconvert ! x264enc tune=zerolatency ! mp4mux fragment-duration=1000 ! filesink location=cap.mp4"
EOF
install -D /dev/stdin "$root/etc/systemd/system/diad-line.service.d/test.conf" <<EOF
[Service]
WatchdogSec=3
EOF
cat >"$root/etc/systemd/system/camera.service" <<EOF
[Service]
ExecStart=arv-fake-gv-camera-0.8 -i 127.0.0.1
EOF
cat >"$root/etc/systemd/system/test.service" <<EOF
[Unit]
After=diad-line.service
Wants=camera.service
SuccessAction=poweroff
FailureAction=poweroff
[Service]
Type=oneshot
ExecStart=/packages/booted.sh
StandardOutput=file:/packages/booted.log
StandardError=inherit
[Install]
WantedBy=multi-user.target
EOF
install -t "$root/packages" plugin/packaging/booted.sh
in_root systemctl --quiet enable test
timeout 180 systemd-nspawn --quiet --directory "$root" --register=no --keep-unit --private-network --boot --console=pipe \
    </dev/null >"$root.log" 2>&1 || tail -n 20 "$root.log"
cat "$root/packages/booted.log"
tail -n 1 "$root/packages/booted.log" | grep -q "^The service did what it should" || fail "the service, or the boot: $root.log"

say "purged"
apt purge diad-line diad gstreamer1.0-diad
for path in usr/bin/diad-run usr/lib/systemd/system/diad-line.service etc/diad/line.toml.example \
    etc/systemd/system/multi-user.target.wants/diad-line.service; do
    [ ! -e "$root/$path" ] && [ ! -L "$root/$path" ] || fail "$path is left by the purge"
done
[ -e "$root/var/lib/diad/parts.diad" ] || fail "the purge took the models"
rm -rf "$root"
say "done"
