#!/bin/sh
# A container the way a container runtime makes one, for machines where none can run: the image's files
# read-only, /proc, /dev and /tmp of its own, the volumes, no capabilities, no way to gain any.
#
# usage, in namespaces of its own (mount, uts, pid): pods_enter.sh ROOT HOSTNAME FOLDER UID [KEY=VALUE…] COMMAND…
# FOLDER holds `hosts`, the container's /etc/hosts, and `volumes`, lines of SOURCE TARGET ro|rw.
set -eu
root=$1 name=$2 folder=$3 uid=$4
shift 4
mount --make-rprivate /
hostname "$name"
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in null zero full random urandom; do
  : >"$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/dev/shm"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t tmpfs -o mode=1777 tmp "$root/tmp"
mount --bind "$folder/hosts" "$root/etc/hosts"
while read -r source target mode; do
  mount --bind "$source" "$root$target"
  [ "$mode" = rw ] || mount -o remount,bind,ro "$root$target"
done <"$folder/volumes"
exec chroot "$root" /usr/bin/setpriv --reuid "$uid" --regid "$uid" --clear-groups --no-new-privs \
  --bounding-set=-all --inh-caps=-all /usr/bin/env -i "$@"
