#!/bin/bash
# Installs the Debian packages that Virtlet needs.
#
#   setup.sh node    what a node needs to run VM pods
#   setup.sh test    that, and what the tests, the demo and the builder of the test images need
#
# Only what is missing is installed; with nothing missing it ends at once. Needs root.
set -euo pipefail
export LC_ALL=C DEBIAN_FRONTEND=noninteractive

node=(
	qemu-system-x86 qemu-utils        # the emulator, qemu-img
	containernetworking-plugins       # CNI plugins
	iproute2 iptables                 # bridge and portmap plugins; looking at what they did
)
test=(
	"${node[@]}"
	gcc libc6-dev                     # go test -race
	ca-certificates curl git          # fetching modules and packages, versions
	e2fsprogs fdisk extlinux util-linux
	cpio kmod zstd xz-utils dpkg      # the test disk image; images compressed as people do it
	busybox                           # a DHCP client that is not ours
	mmdebstrap qemu-system-common     # the node in a VM, virtiofsd
	libseccomp2                       # runc, which e2e/container unpacks and does not install
	procps
	skopeo openssl                    # peers of the benchmarks
	apparmor                          # compiling the profiles
)

die() { echo "setup.sh: $*" >&2; exit 1; }

case ${1:-} in
node) packages=("${node[@]}") ;;
test) packages=("${test[@]}") ;;
*) die "say 'setup.sh node' or 'setup.sh test'" ;;
esac

command -v apt-get >/dev/null && command -v dpkg-query >/dev/null ||
	die "this host has no apt-get; install the counterparts of these Debian packages: ${packages[*]}"

missing=()
for p in "${packages[@]}"; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
done

# The builder of the test images downloads packages by apt too, so stale lists matter even with nothing to install.
# ctime, because apt gives its lists the server's mtime. An unchanged list is not rewritten, hence the stamp.
stamp=/var/lib/apt/lists/virtlet-updated
fresh() { [ -n "$(find /var/lib/apt/lists -maxdepth 1 \( -name '*InRelease' -o -path "$stamp" \) -cmin -1440 -print -quit 2>/dev/null)" ]; }
listed() { [ -n "$(find /var/lib/apt/lists -maxdepth 1 -name '*Packages*' -print -quit 2>/dev/null)" ]; }

if ! listed || { ! fresh && { [ ${#missing[@]} -gt 0 ] || [ "$1" = test ]; }; }; then
	echo "setup.sh: apt-get update"
	if apt-get update -qq; then
		touch "$stamp"
	elif ! listed || [ ${#missing[@]} -gt 0 ]; then
		die "apt-get update failed: check /etc/apt/sources.list and the network"
	else
		echo "setup.sh: going on with the package lists of last time" >&2
	fi
fi

if [ ${#missing[@]} -gt 0 ]; then
	echo "setup.sh: installing ${missing[*]}"
	apt-get install -qq -y --no-install-recommends "${missing[@]}"
fi
