#!/bin/sh
# Fetches Debian's source packages into CACHE/sources and unpacks them there: PostgreSQL as its authors released it,
# without Debian's patches (they are about Debian's paths), the others with them (they are fixes).
#
# Debian's own apt does it, in a private configuration: the machine's sources, with other suites and source
# packages, so that signatures are checked by the machine's keyring and nothing of the machine's apt changes.
#
# Usage: fetch.sh CACHE PACKAGE... Prints each package's folder, sources/PACKAGE-VERSION, a line each. What was fetched
# once stays the source, without a look at the archive, until CACHE/sources/names is removed.
set -eu
cache=$(mkdir -p "$1" && cd "$1" && pwd)
shift
apt=$cache/apt
dest=$cache/sources
mkdir -p "$apt/parts" "$dest/names"

# Debian 13 has no newer major version of PostgreSQL.
suite_of() {
    case $1 in
        postgresql-18) echo "${DORMOUSE_NEWER_SUITE:-forky}" ;;
        *) echo "${DORMOUSE_SUITE:-trixie}" ;;
    esac
}

# One deb-src line from the machine's first Debian archive, whichever of the two formats it is written in.
archive() {
    found=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
        sed -n -e 's/^URIs:[[:space:]]*\([^[:space:]]*\).*/\1/p' -e 's/^deb[[:space:]]\(\[[^]]*\] \)\{0,1\}\([^[:space:]]*\)[[:space:]].*/\2/p' |
        grep -E '/debian/?$' | head -n 1)
    [ -n "$found" ] || { echo "fetch: no Debian archive among the machine's apt sources" >&2; return 1; }
    echo "$found"
}

apt_get() { # suite, then apt-get's own words
    own=$apt/$1
    shift
    apt-get -q -o Dir::Etc::SourceList="$own/sources.list" -o Dir::Etc::SourceParts="$apt/parts" \
        -o Dir::State::Lists="$own/lists" -o Dir::Cache="$own" -o APT::Sandbox::User=root "$@"
}

# A suite's list of source packages, looked for once a run.
updated=
update() {
    case " $updated " in *" $1 "*) return ;; esac
    mkdir -p "$apt/$1/lists/partial" "$apt/$1/archives/partial"
    from=$(archive)
    echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $from $1 main" > "$apt/$1/sources.list"
    apt_get "$1" update >&2
    updated="$updated $1"
}

cd "$dest"
for package; do
    name=$(cat "names/$package" 2> /dev/null || true)
    if [ -z "$name" ] || [ ! -d "$name" ]; then
        suite=$(suite_of "$package")
        update "$suite"
        # Files that are here already are checked by their hashes and not fetched again.
        apt_get "$suite" source --download-only "$package" >&2
        dsc=$(ls -t "$package"_*.dsc | head -n 1)
        name=$package-$(sed -n 's/^Version: //p' "$dsc" | head -n 1)
        if [ ! -d "$name" ]; then
            rm -rf "$name.part"
            case $package in postgresql-*) patches=--skip-patches ;; *) patches= ;; esac
            dpkg-source --no-check $patches -x "$dsc" "$name.part" >&2
            mv "$name.part" "$name"
        fi
        echo "$name" > "names/$package"
    fi
    echo "$dest/$name"
done
