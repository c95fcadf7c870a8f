#!/bin/bash
# Looks at the service where systemd runs it, with a GigE camera that is none: started by test.sh in the Debian 12 that it boots.
set -euo pipefail
fail() { printf 'packaging: error: %s\n' "$*" >&2 && journalctl --unit diad-line --no-pager >&2 && exit 1; }
show() { systemctl show --value --property "$1" diad-line; }
parts() { cat /var/lib/diad/cap.jsonl 2>/dev/null | wc -l; }

# Three times as long as systemd waits for a sign of life: at ten frames a second, and by the clock where the camera is late.
until [ "$(parts)" -ge 90 ]; do
    [ "$SECONDS" -lt 60 ] || fail "60 s, and $(parts) parts"
    sleep 0.2
done
[ "$(show ActiveState) $(show NRestarts)" = "active 0" ] || fail "$(show ActiveState), $(show NRestarts) restarts"
grep -q '^Seccomp:.2' "/proc/$(show MainPID)/status" || fail "no filter of system calls"
grep -q '^CapBnd:.0*$' "/proc/$(show MainPID)/status" || fail "it keeps rights of root's"
exec 3<>/dev/tcp/127.0.0.1/8470
printf 'GET /healthz HTTP/1.0\r\n\r\n' >&3
read -r _ code _ <&3
[ "$code" = 200 ] || fail "/healthz: $code"
systemctl reload diad-line
systemctl stop diad-line
[ "$(show Result)" = success ] || fail "the stop: $(show Result)"
[ -n "$(find /var/lib/diad/archive/cap -name '*.png')" ] || fail "no picture in the archive"
gst-launch-1.0 -q filesrc location=/var/lib/diad/cap.mp4 ! qtdemux ! fakesink

echo "what" >>/etc/diad/line.toml
! systemctl start diad-line 2>/dev/null || fail "it starts with a file that is wrong"
[ "$(show ExecMainStatus) $(show NRestarts) $(show ActiveState)" = "2 0 failed" ] || fail "a file that is wrong: $(show ActiveState)"
journalctl --unit diad-line --no-pager
echo "The service did what it should."
