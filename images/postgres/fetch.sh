#!/bin/sh
# Fetches the source packages of PostgreSQL and musl into CACHE/sources and unpacks them there: PostgreSQL as its
# authors released it, without Debian's patches (they are about Debian's paths), musl with them (they are fixes).
#
# Debian's own apt does it, in a private configuration: the machine's sources, with other suites and source
# packages, so that signatures are checked by the machine's keyring and nothing of the machine's apt changes.
#
# Usage: fetch.sh CACHE. Prints the folders it made: sources/postgresql-17-VERSION, sources/musl-VERSION. What was
# fetched once stays the source, without a look at the archive, until CACHE/sources/fetched is removed.
set -eu
cache=$(mkdir -p "$1" && cd "$1" && pwd)
suite=${DORMOUSE_SUITE:-trixie}
apt=$cache/apt
dest=$cache/sources
mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$apt/parts" "$dest"

if [ -s "$dest/fetched" ] && xargs -a "$dest/fetched" ls -d > /dev/null 2>&1; then
    cat "$dest/fetched"
    exit 0
fi

# One deb-src line from the machine's first Debian archive, whichever of the two formats it is written in.
archive=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
    sed -n -e 's/^URIs:[[:space:]]*\([^[:space:]]*\).*/\1/p' -e 's/^deb[[:space:]]\(\[[^]]*\] \)\{0,1\}\([^[:space:]]*\)[[:space:]].*/\2/p' |
    grep -E '/debian/?$' | head -n 1)
[ -n "$archive" ] || { echo "fetch: no Debian archive among the machine's apt sources" >&2; exit 1; }
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb-src [signed-by=$keyring] $archive $suite main" > "$apt/sources.list"

apt_get() {
    apt-get -q -o Dir::Etc::SourceList="$apt/sources.list" -o Dir::Etc::SourceParts="$apt/parts" \
        -o Dir::State::Lists="$apt/lists" -o Dir::Cache="$apt" -o APT::Sandbox::User=root "$@"
}
apt_get update >&2
cd "$dest"
for package in postgresql-17 musl; do
    # Files that are here already are checked by their hashes and not fetched again.
    apt_get source --download-only "$package" >&2
    dsc=$(ls -t "$package"_*.dsc | head -n 1)
    name=$package-$(sed -n 's/^Version: //p' "$dsc" | head -n 1)
    if [ ! -d "$name" ]; then
        rm -rf "$name.part"
        case $package in postgresql-*) patches=--skip-patches ;; *) patches= ;; esac
        dpkg-source --no-check $patches -x "$dsc" "$name.part" >&2
        mv "$name.part" "$name"
    fi
    echo "$dest/$name"
done > "$dest/fetched.part"
mv "$dest/fetched.part" "$dest/fetched"
cat "$dest/fetched"
