#!/bin/bash
# Unpacks containerd, runc and a static busybox from Debian's packages.
#
#   build.sh
#
# Prints the path of a folder that holds the programs, and in applets the names by which busybox may be called. The
# folder is cached and keyed by this script; remove it to take newer Debian packages. Nothing is installed on the host:
# a package of containerd would start a service, and drive out the one that Docker ships.
set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

cache=${VIRTLET_CACHE:-/var/cache/virtlet-test}

die() { echo "build.sh: $*" >&2; exit 1; }

for tool in apt-get dpkg flock; do
	command -v "$tool" >/dev/null || die "missing on this host: $tool"
done
[ "$(id -u)" = 0 ] || die "must run as root: the folder is for root's programs"

key=$(sha256sum <"${BASH_SOURCE[0]}" | cut -c1-16)
programs=$cache/containerd-$key
finish() { echo "$programs"; exit 0; }
[ ! -e "$programs" ] || finish

# One build at a time; whoever waited finds it made.
mkdir -p "$cache"
exec 9>"$cache/containerd.lock"
flock 9
[ ! -e "$programs" ] || finish

find "$cache" -maxdepth 1 -name 'containerd-build.*' -exec rm -rf {} + # of a build that was killed
tmp=$(mktemp -d "$cache/containerd-build.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM HUP

mkdir "$tmp/deb" "$tmp/pkg" "$tmp/programs"
(cd "$tmp/deb" && apt-get download -qq -o APT::Sandbox::User=root containerd runc busybox-static >/dev/null) ||
	die "apt-get download failed: run apt-get update, and see the message above"
for deb in "$tmp"/deb/*.deb; do
	dpkg -x "$deb" "$tmp/pkg"
done
cp -a "$tmp"/pkg/usr/bin/{containerd,containerd-shim-runc-v2} "$tmp/pkg/usr/sbin/runc" "$tmp/pkg/bin/busybox" "$tmp/programs/"
"$tmp/programs/busybox" --list >"$tmp/programs/applets"
"$tmp/programs/containerd" --version >/dev/null
"$tmp/programs/runc" --version >/dev/null || die "runc does not run here: install the package libseccomp2"
chmod 755 "$tmp/programs"
mv "$tmp/programs" "$programs"
finish
