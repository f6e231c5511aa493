#!/bin/sh
# Runs as process 1 of fresh namespaces, builds a root for a small machine, and becomes systemd. Exit code 77: it cannot be done here.
#
#   boot.sh FOLDER SOURCE PYTHON SITE UNITS
#
# FOLDER  an empty folder, covered by a tmpfs that ends with these namespaces; the root is an overlay of this machine's own
# SOURCE  the checkout; PYTHON and SITE  the interpreter's prefix and its site-packages: all three seen read-only under /opt
# UNITS   what is copied to /etc of that machine
set -eu
FOLDER=$1 SOURCE=$2 PYTHON=$3 SITE=$4 UNITS=$5

skip() { echo "$1" >&2; exit 77; }

mount --make-rprivate / || skip "mounts cannot be made private"
mount -t tmpfs -o mode=755,size=1g tmpfs "$FOLDER" || skip "no tmpfs"
mkdir "$FOLDER/upper" "$FOLDER/work" "$FOLDER/root"
R=$FOLDER/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$FOLDER/upper,workdir=$FOLDER/work" "$R" || skip "no overlay of the root"
mount -t proc -o nosuid,nodev,noexec proc "$R/proc" || skip "no proc"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$R/sys" || skip "no sysfs"
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$R/sys/fs/cgroup" || skip "no cgroup2"
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$R/run"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$R/tmp"
mount -t tmpfs -o mode=755,nosuid tmpfs "$R/dev"
for node in null zero full random urandom tty; do
    : > "$R/dev/$node"
    mount --bind "/dev/$node" "$R/dev/$node"
done
mkdir -p "$R/dev/pts" "$R/dev/shm" "$R/run/lock"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$R/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$R/dev/shm"
ln -s pts/ptmx "$R/dev/ptmx"
ln -s /proc/self/fd "$R/dev/fd"
: > "$R/dev/console"

# Nothing of this machine's own services starts.
rm -rf "$R"/etc/systemd/system/*.wants "$R/etc/systemd/system/default.target"
for unit in systemd-networkd systemd-resolved systemd-timesyncd systemd-logind systemd-udevd systemd-udev-trigger systemd-firstboot \
    systemd-sysusers systemd-binfmt systemd-tmpfiles-setup getty@tty1 console-getty; do
    ln -sf /dev/null "$R/etc/systemd/system/$unit.service"
done
for unit in systemd-udevd-control.socket systemd-udevd-kernel.socket timers.target proc-sys-fs-binfmt_misc.automount dev-hugepages.mount \
    sys-kernel-debug.mount sys-kernel-tracing.mount; do
    ln -sf /dev/null "$R/etc/systemd/system/$unit"
done
: > "$R/etc/fstab"
echo 0123456789abcdef0123456789abcdef > "$R/etc/machine-id"

# kerneld as an administrator would install it: an environment in /opt/kerneld, units and configuration in /etc.
VERSION=$(basename "$(dirname "$SITE")")
mkdir -p "$R/opt/kerneld/bin" "$R/opt/kerneld/lib/$VERSION/site-packages" "$R/opt/python" "$R/opt/source" "$R/etc/kerneld"
mount --bind -o ro "$PYTHON" "$R/opt/python"
mount --bind -o ro "$SITE" "$R/opt/kerneld/lib/$VERSION/site-packages"
mount --bind -o ro "$SOURCE" "$R/opt/source"
ln -s "/opt/python/bin/$VERSION" "$R/opt/kerneld/bin/python"
printf 'home = /opt/python/bin\ninclude-system-site-packages = false\n' > "$R/opt/kerneld/pyvenv.cfg"
cp -r "$UNITS/." "$R/etc/"
chroot "$R" systemd-sysusers kerneld.conf || skip "systemd-sysusers does not work"
chroot "$R" systemd-tmpfiles --create kerneld.conf || skip "systemd-tmpfiles does not work"

mkdir "$R/oldroot"
cd "$R"
pivot_root . oldroot
umount -l /oldroot
exec env -i container=kerneld-test PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    /lib/systemd/systemd --system --unit=kerneld-test.target --log-target=journal-or-kmsg --show-status=no --crash-reboot=no \
    < /dev/null > /dev/null 2>&1
