#!/bin/sh
# Starts Beam's boot program as the user `worker`, with the arguments given, whoever starts this.
set -eu
export HOME=/home/worker
boot=/opt/apache/beam/boot
if [ "$(id -u)" -ne 0 ]; then
    exec "$boot" "$@"
fi

# Dataflow mounts a folder for what is staged, and root's own devices.
hand_over() {
    mkdir -p "$1"
    [ "$1" = /tmp ] || chown worker "$1"
}
before=
for argument in "$@"; do
    case $before in
    --semi_persist_dir | -semi_persist_dir) hand_over "$argument" ;;
    esac
    case $argument in
    --semi_persist_dir=?* | -semi_persist_dir=?*) hand_over "${argument#*=}" ;;
    esac
    before=$argument
done
for device in /dev/accel[0-9]* /dev/vfio/*; do
    [ ! -c "$device" ] || chown worker "$device"
done
# A TPU's driver pins memory for each chip. Where that may not be raised, the driver says so.
ulimit -l unlimited 2>/dev/null || true
exec setpriv --reuid=worker --regid=worker --init-groups "$boot" "$@"
