#!/bin/bash
# Builds the node image: a Debian 12 with systemd, cgroup v2, QEMU and CNI plugins, on which the tests run Virtlet as a
# node would. Prints the path of the cached folder:
#
#   disk.raw vmlinuz initramfs     for direct kernel boot; the disk is a sparse ext4 file system
#   id_ed25519 host_ed25519.pub    root's key and the node's host key
#
# The cache is keyed by the files of this folder, so a second call returns at once; remove it to take newer Debian packages. The
# packages come from where this host's apt has its Debian packages from. Needs root.
set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${VIRTLET_CACHE:-/var/cache/virtlet-test}
suite=bookworm

die() { echo "build.sh: $*" >&2; exit 1; }
step() { echo "build.sh: $*" >&2; }
need() { command -v "$1" >/dev/null || missing+=("$1 (package $2)"); }
missing=()
need mmdebstrap mmdebstrap
need mke2fs e2fsprogs
need cpio cpio
need modprobe kmod
need unshare util-linux
[ ${#missing[@]} = 0 ] || die "missing on this host: $(printf '%s; ' "${missing[@]}")install them with apt-get"
[ "$(id -u)" = 0 ] || die "must run as root: mmdebstrap installs packages in a chroot"
[ "$(dpkg --print-architecture)" = amd64 ] || die "only amd64 is supported"

packages=(
	linux-image-cloud-amd64 systemd systemd-sysv dbus udev kmod procps busybox-static openssh-server
	qemu-system-x86 qemu-utils containernetworking-plugins iproute2 iptables curl
)

key=$(cd "$here" && find build.sh rootfs ../image/initramfs -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16)
result=$cache/node-$key
finish() { echo "$result"; exit 0; }
[ ! -e "$result" ] || finish

# One build at a time; whoever waited finds the node made.
mkdir -p "$cache"
exec 9>"$cache/node.lock"
flock 9
[ ! -e "$result" ] || finish

find "$cache" -maxdepth 1 -name 'node-build.*' -exec rm -rf {} +   # of a build that was killed
tmp=$(mktemp -d "$cache/node-build.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM HUP
chmod 755 "$tmp" # apt's user must get in

# The source files of this host's apt that name Debian's repositories of this suite, others left out.
repositories=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 'Origin: Debian' |
	sed -n "s/^\(.*[^/]\)\/* $suite.*/\1/p" | sort -u)
[ -n "$repositories" ] || die "apt has no Debian $suite here: run apt-get update, or add it to /etc/apt/sources.list"
sources=()
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
	[ -e "$file" ] && grep -v '^ *#' "$file" | grep -qF "$repositories" && sources+=("$file")
done
[ ${#sources[@]} -gt 0 ] || die "no file of /etc/apt names Debian's repositories"
# A proxy that apt uses here is used there too.
apt-config dump | grep -E '^Acquire::(http|https|ftp)::' >"$tmp/apt.conf" || true

step "installing Debian packages (one to two minutes)"
root=$tmp/root
# The kernel's package makes an initramfs that is not used: keep it small. Whatever mmdebstrap mounts goes with its namespace.
unshare --mount --propagation private -- \
	mmdebstrap --quiet --mode=root --variant=minbase --format=directory \
	--include="$(IFS=,; echo "${packages[*]}")" \
	--aptopt="$tmp/apt.conf" \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' \
	--essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" && echo MODULES=list >"$1/etc/initramfs-tools/conf.d/small"' \
	--customize-hook="copy-in '$here/rootfs/etc' /" \
	--customize-hook='chroot "$1" systemctl --quiet enable node-network.service node-ready.service' \
	--customize-hook='chroot "$1" systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer getty@tty1.service' \
	--customize-hook='chroot "$1" sh -c "rm -f /etc/ssh/ssh_host_*; ssh-keygen -q -t ed25519 -N \"\" -f /etc/ssh/ssh_host_ed25519_key; mkdir -m 700 -p /root/.ssh /share; ssh-keygen -q -t ed25519 -N \"\" -C virtlet-test-node -f /root/.ssh/id; mv /root/.ssh/id.pub /root/.ssh/authorized_keys"' \
	"$suite" "$root" "${sources[@]}" >&2 || die "mmdebstrap failed, see above"

step "making the disk"
out=$tmp/out
mkdir -m 700 "$out"
mv "$root/root/.ssh/id" "$out/id_ed25519"
cp "$root/etc/ssh/ssh_host_ed25519_key.pub" "$out/host_ed25519.pub"
kernel=$(echo "$root"/boot/vmlinuz-*)
version=${kernel##*/vmlinuz-}
mv "$kernel" "$out/vmlinuz"
rm -rf "$root"/boot/* "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*

# An initramfs of a second's boot time: it loads the disk's driver and hands over.
ramfs=$tmp/initramfs
mkdir -p "$ramfs"/{bin,dev,proc,root,modules}
cp "$here/../image/initramfs/init" "$ramfs/init"
chmod 755 "$ramfs/init"
cp "$root/bin/busybox" "$ramfs/bin"
for applet in sh insmod mount switch_root cat; do ln -s busybox "$ramfs/bin/$applet"; done
for m in virtio_pci virtio_blk; do modprobe -d "$root" -S "$version" --show-depends "$m"; done |
	sed -n 's/^insmod \(\S*\).*/\1/p' | awk '!seen[$0]++' | while read -r module; do
	cp "$module" "$ramfs/modules"
	echo "insmod /modules/${module##*/}"
done >"$tmp/load"
mv "$tmp/load" "$ramfs/modules/load"
(cd "$ramfs" && find . | sort | cpio --quiet -o -H newc -R 0:0 | gzip -1) >"$out/initramfs"

truncate -s 8G "$out/disk.raw"
mke2fs -q -t ext4 -m 0 -L virtlet-node -E lazy_itable_init=1,root_owner=0:0 -d "$root" "$out/disk.raw"

mv "$out" "$result"
step "made $result ($(du -sm "$result" | cut -f1) MiB)"
finish
