#!/bin/bash
# Builds the test disk image: a CirrOS-like guest made from Debian packages alone.
#
#   build.sh [OUTPUT.qcow2]
#
# Prints the path of the cached image; with OUTPUT, copies it there too. The cache is keyed by
# everything of ours that goes into the image, so a second call returns at once; remove the cache
# folder to take newer Debian packages. Needs root (a loop mount in a mount namespace of its own)
# and Go. Nothing of the guest is installed on the host.
set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin:/usr/local/go/bin"

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${VIRTLET_CACHE:-/var/cache/virtlet-test}
output=${1:-}

die() { echo "build.sh: $*" >&2; exit 1; }
step() { echo "build.sh: $*" >&2; }

# need TOOL PACKAGE: a missing tool is named together with the Debian package that has it.
need() { command -v "$1" >/dev/null || [ -e "$1" ] || missing+=("$1 (package $2)"); }
missing=()
need qemu-img qemu-utils
need extlinux extlinux
need /usr/lib/EXTLINUX/mbr.bin extlinux
need mke2fs e2fsprogs
need sfdisk fdisk
need cpio cpio
need modprobe kmod
need depmod kmod
need unshare util-linux
need dpkg dpkg
need go "golang, or the Go distribution"
[ ${#missing[@]} = 0 ] || die "missing on this host: $(printf '%s; ' "${missing[@]}")install them with apt-get"
[ "$(id -u)" = 0 ] || die "must run as root: the boot loader is installed through a loop mount"
[ "$(dpkg --print-architecture)" = amd64 ] || die "only amd64 is supported"

# The key: our files, and the one module that the guest's program needs.
key=$({ cd "$here"; find build.sh facts.go guestinit initramfs rootfs -type f ! -name '*_test.go' -print0 | sort -z | xargs -0 sha256sum
        grep -h 'go.yaml.in/yaml/v3 ' ../../go.mod | grep -o 'v3 v[^ ]*'; } | sha256sum | cut -c1-16)
image=$cache/image-$key.qcow2

finish() {
	if [ -n "$output" ]; then
		cp --reflink=auto --sparse=always "$image" "$output.tmp.$$" && mv -f "$output.tmp.$$" "$output"
	fi
	echo "$image"
	exit 0
}
[ ! -e "$image" ] || finish

# One build at a time; whoever waited finds the image made.
mkdir -p "$cache"
exec 9>"$cache/image.lock"
flock 9
[ ! -e "$image" ] || finish

# All temporary files are below one folder. It stands beside the cache, so that the last rename is atomic.
find "$cache" -maxdepth 1 -name 'image-build.*' -exec rm -rf {} +   # of a build that was killed
tmp=$(mktemp -d "$cache/image-build.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM HUP

step "fetching Debian packages"
kernel=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
[ -n "$kernel" ] || die "apt knows no linux-image-cloud-amd64: run apt-get update, or check /etc/apt/sources.list"
mkdir "$tmp/deb" "$tmp/pkg"
chmod 755 "$tmp" "$tmp/deb"
# dropbear's libraries come from its declared dependencies, not from the host.
packages=$(apt-cache depends -i --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
	--no-replaces --no-enhances dropbear-bin | grep '^[a-z]' | grep -v -e '-base$' | sort -u)
# shellcheck disable=SC2086
(cd "$tmp/deb" && apt-get download -qq -o APT::Sandbox::User=root "$kernel" busybox-static $packages >/dev/null) ||
	die "apt-get download failed: run apt-get update, and see the message above"
for deb in "$tmp"/deb/*.deb; do
	case $deb in
	*/linux-image*) mkdir "$tmp/kernel" && dpkg -x "$deb" "$tmp/kernel" ;;
	*) dpkg -x "$deb" "$tmp/pkg" ;;
	esac
done
version=$(basename "$tmp"/kernel/lib/modules/*)

step "making the root file system ($kernel)"
root=$tmp/root
mkdir -p "$root"/{bin,boot,dev,etc,lib,lib64,mnt,proc,root,run,sbin,sys,tmp,usr/bin,usr/sbin,var/lib}
chmod 1777 "$root/tmp"; chmod 700 "$root/root"
cp -r "$here/rootfs/." "$root"
chmod 755 "$root/usr/share/udhcpc/default.script"
cp "$tmp/pkg/bin/busybox" "$root/bin/busybox"
for applet in $("$root/bin/busybox" --list); do
	[ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
ln -s ../bin/busybox "$root/sbin/init"
cp "$tmp"/pkg/usr/sbin/dropbear "$tmp"/pkg/usr/bin/dropbear{key,convert} "$root/usr/sbin"
cp -L "$tmp/pkg/lib64/ld-linux-x86-64.so.2" "$root/lib64"
for lib in libtomcrypt.so.1 libtommath.so.1 libz.so.1 libcrypt.so.1 libc.so.6 libgmp.so.10; do
	cp -L "$(find "$tmp/pkg" -name "$lib" | head -1)" "$root/lib"
done
(cd "$here" && CGO_ENABLED=0 GOOS=linux GOARCH=amd64 GOFLAGS='' go build -trimpath -buildvcs=false -ldflags '-s -w' -o "$root/sbin/guestinit" ./guestinit)

# Modules, in the order in which they must be loaded: first those that find the root disk (these go
# to the initramfs), then the others.
moddir=$tmp/kernel/lib/modules/$version
depmod -b "$tmp/kernel" "$version"
order() { # MODULE...: each one after what it depends on, no duplicates
	for m; do modprobe -d "$tmp/kernel" -S "$version" --show-depends "$m"; done |
		sed -n 's/^insmod \(\S*\).*/\1/p' | awk '!seen[$0]++'
}
early=$(order virtio_pci virtio_blk)
late=$(order button evdev virtio_net virtio-rng virtio_balloon virtio_console pvpanic-pci pvpanic-mmio isofs | grep -vxF "$early")
scsi=$(order virtio_scsi sr_mod | grep -vxF -e "$early" -e "$late") # only where there is a controller: SCSI is slow to start
mkdir -p "$root/lib/modules" "$tmp/initramfs/modules" "$tmp/initramfs"/{bin,dev,proc,root}
# shellcheck disable=SC2086
{ cp $early "$tmp/initramfs/modules"; cp $late $scsi "$root/lib/modules"; }
# Signatures go: checking each costs tens of milliseconds under emulation. The file ends with a struct module_signature, whose
# last word is the signature's length, and a marker of 28 bytes.
for m in "$root"/lib/modules/*.ko "$tmp"/initramfs/modules/*.ko; do
	if [ "$(tail -c 28 "$m")" = "~Module signature appended~" ]; then
		length=$((16#$(tail -c 32 "$m" | head -c 4 | od -An -tx1 | tr -d ' ')))
		truncate -s -$((length + 12 + 28)) "$m"
	fi
done
for m in $late; do basename "$m"; done >"$root/lib/modules/order"
for m in $scsi; do basename "$m"; done >"$root/lib/modules/order.scsi"

cp "$here/initramfs/init" "$tmp/initramfs/init"
for m in $early; do echo "insmod /modules/$(basename "$m")"; done >"$tmp/initramfs/modules/load"
chmod 755 "$tmp/initramfs/init"
cp "$root/bin/busybox" "$tmp/initramfs/bin/busybox"
for applet in sh insmod mount switch_root cat; do ln -s busybox "$tmp/initramfs/bin/$applet"; done
(cd "$tmp/initramfs" && find . | sort | cpio --quiet -o -H newc -R 0:0 | gzip -1) >"$tmp/initramfs.gz"

step "making the disk"
# 256 MiB virtual: room for tests to fill. One partition, so that the disk looks like any other.
disk=$tmp/disk.raw
truncate -s 256M "$disk"
echo '2048,,L,*' | sfdisk -q "$disk"
# extlinux reads neither 64bit nor metadata_csum. A small journal keeps a killed guest's file system sound.
mke2fs -q -t ext4 -O ^64bit,^metadata_csum -J size=4 -b 4096 -m 0 -L virtlet-test -E offset=1048576,root_owner=0:0,lazy_itable_init=1 \
	-d "$root" "$disk" 255M
# The mount lives in a namespace of this one process and its loop device is released with it: killed at any
# point, nothing stays. Kernel and initramfs are copied here because mke2fs makes holes in files, which extlinux cannot read.
mkdir "$tmp/mnt"
unshare --mount --propagation private bash -euc '
	mount -o loop,offset=1048576 "$1" "$2"
	chown -hR 0:0 "$2"
	cp --sparse=never "$3" "$2/boot/vmlinuz"
	cp --sparse=never "$4" "$2/boot/initramfs"
	extlinux --install "$2/boot" >/dev/null 2>&1
	umount "$2"' - "$disk" "$tmp/mnt" "$tmp/kernel/boot/vmlinuz-$version" "$tmp/initramfs.gz"
dd if=/usr/lib/EXTLINUX/mbr.bin of="$disk" conv=notrunc bs=440 count=1 status=none
# Not compressed: the boot loader polls, so reading compressed clusters costs it a second. The kernel is compressed anyway.
qemu-img convert -q -O qcow2 "$disk" "$tmp/image.qcow2"

mv "$tmp/image.qcow2" "$image"
step "made $image ($(($(stat -c %s "$image") >> 20)) MiB)"
finish
