# Sourced by the scripts: makes sure of a C compiler and of Rust, with apt where that is allowed.

missing=""
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
command -v pkg-config >/dev/null 2>&1 || missing="$missing pkg-config"
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
