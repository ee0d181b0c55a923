#!/bin/bash
# Builds the disk image of the node in a VM: Debian of the host's release with systemd, QEMU and CNI plugins.
#
#   build.sh
#
# Prints the path of a folder that holds node.qcow2 (one ext4 file system, no boot loader), vmlinuz and initramfs. The
# folder is cached and keyed by this script, so a second call returns at once; remove it to take newer Debian packages.
# Needs root. Packages come from where the host's apt takes Debian's; nothing is installed on the host.
set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

cache=${VIRTLET_CACHE:-/var/cache/virtlet-test}
packages=(
	systemd systemd-sysv dbus udev kmod procps iproute2
	qemu-system-x86 qemu-utils containernetworking-plugins iptables
	apparmor                         # the LSM is in the kernel; this loads profiles
	qemu-guest-agent                 # how the tests run commands
)

die() { echo "build.sh: $*" >&2; exit 1; }
step() { echo "build.sh: $*" >&2; }

# need TOOL PACKAGE: a missing tool is named together with the Debian package that has it.
need() { command -v "$1" >/dev/null || missing+=("$1 (package $2)"); }
missing=()
need mmdebstrap mmdebstrap
need qemu-img qemu-utils
need mke2fs e2fsprogs
need cpio cpio
need depmod kmod
need flock util-linux
[ ${#missing[@]} = 0 ] || die "missing on this host: $(printf '%s; ' "${missing[@]}")install them with apt-get"
[ "$(id -u)" = 0 ] || die "must run as root: the image holds files of root's"
[ "$(dpkg --print-architecture)" = amd64 ] || die "only amd64 is supported"

key=$(sha256sum <"${BASH_SOURCE[0]}" | cut -c1-16)
node=$cache/node-$key
finish() { echo "$node"; exit 0; }
[ ! -e "$node" ] || finish

# One build at a time; whoever waited finds the image made.
mkdir -p "$cache"
exec 9>"$cache/node.lock"
flock 9
[ ! -e "$node" ] || finish

# All temporary files are below one folder. It stands beside the cache, so that the last rename is atomic.
find "$cache" -maxdepth 1 -name 'node-build.*' -exec rm -rf --one-file-system {} + # of a build that was killed
tmp=$(mktemp -d "$cache/node-build.XXXXXX")
trap 'rm -rf --one-file-system "$tmp"' EXIT
trap 'exit 130' INT TERM HUP
chmod 755 "$tmp"

# The host's own sources of Debian packages, others left out, and its proxy.
sources() { apt-get indextargets --format "$1" 'Created-By: Packages' 'Origin: Debian'; }
# shellcheck disable=SC2016 # apt replaces the words
{
	read -r suite < <(sources '$(CODENAME)' | sort) || die "apt has no lists of Debian's packages: run apt-get update"
	sources 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' >"$tmp/sources.list"
}
apt-config dump | grep -E '^Acquire::(http|https)::' >"$tmp/apt.conf" || true
echo 'Apt::Install-Recommends "false";' >>"$tmp/apt.conf"
kernel=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
[ -n "$kernel" ] || die "apt knows no linux-image-cloud-amd64: run apt-get update"

# The kernel is only unpacked: its package would build an initramfs of 30 MB.
unpack_kernel() {
	mkdir "$tmp/deb" "$tmp/kernel" "$tmp/busybox"
	(cd "$tmp/deb" && apt-get download -qq -o APT::Sandbox::User=root "$kernel" busybox-static >/dev/null)
	dpkg -x "$tmp"/deb/linux-image*.deb "$tmp/kernel"
	dpkg -x "$tmp"/deb/busybox-static*.deb "$tmp/busybox"
	version=$(basename "$tmp"/kernel/lib/modules/*)
	depmod -b "$tmp/kernel" "$version"

	# The initramfs finds the root disk and hands over; virtio disks are there when the module's probe returns.
	local init=$tmp/initramfs
	mkdir -p "$init"/{bin,dev,modules,proc,root}
	cp "$tmp/busybox/bin/busybox" "$init/bin"
	for applet in sh insmod mount switch_root; do ln -s busybox "$init/bin/$applet"; done
	{
		printf '%s\n' '#!/bin/sh' 'mount -t proc proc /proc' 'mount -t devtmpfs dev /dev'
		for m in virtio_pci virtio_blk ext4; do modprobe -d "$tmp/kernel" -S "$version" --show-depends "$m"; done |
			sed -n 's/^insmod \(\S*\).*/\1/p' | awk '!seen[$0]++' |
			while read -r module; do
				cp "$module" "$init/modules"
				echo "insmod /modules/$(basename "$module")"
			done
		printf '%s\n' 'mount -t ext4 -o rw,noatime /dev/vda /root' 'mount --move /dev /root/dev' 'mount --move /proc /root/proc' \
			'exec switch_root /root /sbin/init'
	} >"$init/init"
	chmod 755 "$init/init"
	mkdir "$tmp/out"
	(cd "$init" && find . | sort | cpio --quiet -o -H newc -R 0:0 | gzip -1) >"$tmp/out/initramfs"
	cp "$tmp/kernel/boot/vmlinuz-$version" "$tmp/out/vmlinuz"
}

step "installing Debian $suite"
unpack_kernel 9>&- &
kernel_job=$!
leave_out=()
for path in doc man info locale lintian bug; do leave_out+=(--dpkgopt="path-exclude=/usr/share/$path/*"); done
# Whatever it mounts goes with its namespace.
unshare --mount --propagation private -- \
	mmdebstrap --quiet --mode=root --variant=essential --format=directory \
	--include="$(IFS=,; echo "${packages[*]}")" \
	--aptopt="$tmp/apt.conf" --dpkgopt=force-unsafe-io "${leave_out[@]}" \
	"$suite" "$tmp/root" "$tmp/sources.list" >&2 9>&- || die "mmdebstrap failed: see the message above; apt-get update may help"
wait "$kernel_job" || die "unpacking $kernel failed: see the message above; apt-get update may help"

step "making it a node"
root=$tmp/root
cp -r "$tmp"/kernel/lib/modules "$root/usr/lib/"
echo node >"$root/etc/hostname"
echo "127.0.0.1 localhost node" >"$root/etc/hosts"
# With an id and caches that count as fresh, the first boot is like any other.
md5sum </dev/null | cut -c1-32 >"$root/etc/machine-id"
touch "$root/etc/.updated" "$root/var/.updated"
# A node runs pods and nothing else: no login, no timers that wake up under a test.
for unit in getty@tty1.service serial-getty@ttyS0.service getty.target apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
	fstrim.timer e2scrub_all.timer e2scrub_reap.service systemd-pstore.service systemd-tmpfiles-clean.timer; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
printf '%s\n' kvm_amd vhost_net tun >"$root/etc/modules-load.d/node.conf"
echo net.ipv4.ip_forward=1 >"$root/etc/sysctl.d/node.conf"
# The agent tells the journal of each request.
mkdir -p "$root/etc/systemd/system/qemu-guest-agent.service.d"
printf '%s\n' '[Service]' LogLevelMax=warning >"$root/etc/systemd/system/qemu-guest-agent.service.d/quiet.conf"

step "making the disk"
truncate -s 6G "$tmp/node.raw"
mke2fs -q -t ext4 -m 0 -L node -E lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0 -d "$root" "$tmp/node.raw"
qemu-img convert -q -O qcow2 "$tmp/node.raw" "$tmp/out/node.qcow2"

mv -T "$tmp/out" "$node"
step "made $node ($(du -sm "$node" | cut -f1) MiB)"
finish
