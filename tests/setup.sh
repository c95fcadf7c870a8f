# Sourced by the scripts: makes sure of a C compiler, GStreamer and Rust, with apt where that is allowed.

missing=""
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
command -v pkg-config >/dev/null 2>&1 || missing="$missing pkg-config"
for module in gstreamer-1.0:libgstreamer1.0-dev gstreamer-video-1.0:libgstreamer-plugins-base1.0-dev \
    gstreamer-check-1.0:libgstreamer1.0-dev gstreamer-rtsp-server-1.0:libgstrtspserver-1.0-dev; do
    pkg-config --exists "${module%%:*}" 2>/dev/null || missing="$missing ${module##*:}"
done
command -v gst-launch-1.0 >/dev/null 2>&1 || missing="$missing gstreamer1.0-tools"
# One element stands for each package of them.
elements() {
    for pair in videoconvert:base jpegdec:good x264enc:ugly openh264dec:bad; do
        gst-inspect-1.0 --exists "${pair%%:*}" 2>/dev/null || missing="$missing gstreamer1.0-plugins-${pair##*:}"
    done
}
elements
if [ "${DIAD_CAMERAS:-}" = 1 ]; then # what only the tests need: a GigE camera that is none, a broker, and Python's view
    command -v arv-fake-gv-camera-0.8 >/dev/null 2>&1 || missing="$missing aravis-tools libaravis-0.8-0"
    command -v setpriv >/dev/null 2>&1 || missing="$missing util-linux"
    [ -x /usr/sbin/mosquitto ] || missing="$missing mosquitto"
    command -v mosquitto_sub >/dev/null 2>&1 || missing="$missing mosquitto-clients"
    command -v openssl >/dev/null 2>&1 || missing="$missing openssl"
    # The second import is python3-gst-1.0: without it Python does not know GStreamer's arrays.
    /usr/bin/python3 -c 'import gi; gi.require_version("Gst", "1.0"); from gi.repository import Gst; from gi.overrides import Gst' 2>/dev/null ||
        missing="$missing python3-gi gir1.2-gstreamer-1.0 python3-gst-1.0"
fi
if [ -n "$missing" ]; then
    apt="apt-get install -y --no-install-recommends$missing"
    if [ "$(id -u)" = 0 ]; then
        apt-get update -q && $apt
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        sudo apt-get update -q && sudo $apt
    else
        printf 'These packages are missing:%s\nInstall them with:  sudo %s\n' "$missing" "$apt" >&2
        exit 2
    fi
fi
[ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
if ! command -v cargo >/dev/null 2>&1; then
    printf 'cargo is missing: install Rust 1.95 or newer from https://rustup.rs\n' >&2
    exit 2
fi
