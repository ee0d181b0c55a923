#!/bin/bash
# Unpacks the registry of Debian's package docker-registry.
#
#   unpack.sh
#
# Prints the program's path. It is cached and keyed by this script; remove it to take a newer Debian package. Nothing is
# installed on the host, where the package would start a service.
set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"

cache=${VIRTLET_CACHE:-/var/cache/virtlet-test}

die() { echo "unpack.sh: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "must run as root: it makes a program for root"
key=$(sha256sum <"${BASH_SOURCE[0]}" | cut -c1-16)
program=$cache/docker-registry-$key
finish() { echo "$program"; exit 0; }
[ ! -e "$program" ] || finish

# One at a time; whoever waited finds it made.
mkdir -p "$cache"
exec 9>"$cache/docker-registry.lock"
flock 9
[ ! -e "$program" ] || finish

rm -rf "$cache"/docker-registry-unpack.* # of a run that was killed
tmp=$(mktemp -d "$cache/docker-registry-unpack.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM HUP

(cd "$tmp" && apt-get download -qq -o APT::Sandbox::User=root docker-registry >/dev/null) ||
	die "apt-get download failed: run apt-get update, and see the message above"
dpkg -x "$tmp"/*.deb "$tmp/pkg"
"$tmp/pkg/usr/bin/docker-registry" --version >/dev/null || die "docker-registry does not run here"
mv "$tmp/pkg/usr/bin/docker-registry" "$program"
finish
