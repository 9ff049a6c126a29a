#!/usr/bin/env bash
# Install what the native runtime is built with on Debian 12 or later, as root or with sudo.
#
# What the machine's release lacks (onnxruntime's headers and a new qemu in Debian 12) comes from a
# later one: apt downloads it with settings and lists of its own, from the mirror that this machine
# uses already, and it is unpacked into a folder. It is not installed, and apt's settings stay.
set -euo pipefail

readonly later_release=trixie
readonly min_qemu_version=10
readonly os_release=/etc/os-release

usage() {
    cat <<'END'
Usage: install_native_dependencies.sh [OPTIONS] [FOLDER]

  Install cmake, ninja, a compiler, nlohmann-json and stb with apt, and onnxruntime's headers, into
  FOLDER/include/onnxruntime where this release of Debian has no package of them. FOLDER is
  build/native-dependencies if it is not given. onnxruntime's library is not installed: the build
  takes that of the Python package or of the system (docs/c-api.md).

Options:
  --format         Also clang-format.
  --sanitizers     Also clang with libFuzzer, and valgrind.
  --cross-aarch64  Also a compiler for aarch64, qemu to run what it makes (FOLDER/bin), and
                   onnxruntime for aarch64 (FOLDER/aarch64/lib), of the version that PYTHON has.
  --check          Install nothing: list what is missing, and exit with 1 if something is.
  -h, --help       Show this message.

PYTHON is that environment variable, or python3.
END
}

fail() {
    echo "error: $*" >&2
    exit 1
}

# ---- packages of this release

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# The sanitizers and libFuzzer of the clang that is installed, or of this release's.
name_clang_runtime() {
    local major
    major=$(clang --version 2>/dev/null | sed -nE '1s/.*version ([0-9]+).*/\1/p') || true
    if [ -n "$major" ]; then echo "libclang-rt-$major-dev"; else echo libclang-rt-dev; fi
}

is_debian() {
    # shellcheck source=/dev/null
    (. "$os_release" && [ "${ID:-}" = debian ])
}

# Each is a package, or package:command where any such command will do.
list_missing_packages() {
    local item
    for item in "$@"; do
        case "$item" in
            *:*) command -v "${item#*:}" >/dev/null || echo "${item%:*}" ;;
            *)
                dpkg-query -W -f '${Status}' "$item" 2>/dev/null | grep -q 'ok installed' ||
                    echo "$item"
                ;;
        esac
    done
}

install_packages() {
    as_root apt-get -qq update
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install --yes --no-install-recommends "$@" >/dev/null
}

# ---- packages of a later release

# The addresses of the archives that this release comes from, in whatever form apt is told of them.
list_archives() {
    local codename
    # shellcheck source=/dev/null
    codename=$(. "$os_release" && echo "${VERSION_CODENAME:-}")
    apt-get update --print-uris |
        sed -nE "s#^'(.*)/dists/($codename|oldstable|stable)/InRelease'.*#\1#p" | sort -u
}

# The Signed-By of an archive, where it is the path of a file.
find_keyring() {
    local file
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ -e "$file" ] || continue
        grep -F "$1" "$file" | sed -nE 's/^deb .*signed-by=(\/[^] ]*).*/\1/p'
    done
    for file in /etc/apt/sources.list.d/*.sources; do
        [ -e "$file" ] || continue
        awk -v archive="$1" 'BEGIN { RS = "" } index($0, archive)' "$file" |
            sed -nE 's/^Signed-By: *(\/[^ ]*).*/\1/p'
    done
}

write_apt_settings() {
    local folder=$1 archive=$2 keyring
    keyring=$(find_keyring "$archive" | head -n 1)
    mkdir -p "$folder/parts" "$folder/lists/partial" "$folder/cache/archives/partial"
    {
        printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n' "$archive" "$later_release"
        if [ -n "$keyring" ]; then echo "Signed-By: $keyring"; fi
    } >"$folder/parts/later.sources"
    # Without what a machine does after each update: that is for its own lists.
    cat >"$folder/apt.conf" <<END
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Architectures "$(dpkg --print-architecture)";
APT::Sandbox::User "";
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "$folder/parts";
Dir::State::Lists "$folder/lists";
Dir::Cache "$folder/cache";
Acquire::Languages "none";
END
}

# Unpack packages of the later release into a folder.
unpack_later_packages() {
    local target=$1 settings=$temporary/apt archive package
    shift
    is_debian || fail "apt has no $* here: get it by hand (docs/c-api.md)"
    while read -r archive; do
        rm -rf "$settings"
        write_apt_settings "$settings" "$archive"
        if apt-get -c "$settings/apt.conf" -qq update &&
            (cd "$settings" && apt-get -c "$settings/apt.conf" -qq download "$@"); then
            for package in "$settings"/*.deb; do dpkg -x "$package" "$target"; done
            return
        fi
    done < <(list_archives)
    fail "$* of Debian $later_release cannot be downloaded from the archives that apt has here:" \
        "put them into $folder by hand (docs/c-api.md)"
}

# ---- the parts

has_onnxruntime_headers() {
    [ -e "$folder/include/onnxruntime/onnxruntime_c_api.h" ] ||
        [ -e /usr/include/onnxruntime/onnxruntime_c_api.h ]
}

install_onnxruntime_headers() {
    if apt-cache show libonnxruntime-dev >/dev/null 2>&1; then
        install_packages libonnxruntime-dev
        return
    fi
    unpack_later_packages "$temporary/headers" libonnxruntime-dev
    mkdir -p "$folder/include"
    cp -R "$temporary/headers/usr/include/onnxruntime" "$folder/include/"
}

has_qemu_for_aarch64() {
    local program version
    for program in "$folder/bin/qemu-aarch64" qemu-aarch64; do
        version=$("$program" --version 2>/dev/null | sed -nE '1s/.*version ([0-9]+).*/\1/p') || true
        if [ "${version:-0}" -ge "$min_qemu_version" ]; then return 0; fi
    done
    return 1
}

install_qemu_for_aarch64() {
    unpack_later_packages "$temporary/qemu" qemu-user
    mkdir -p "$folder/bin"
    cp "$temporary/qemu/usr/bin/qemu-aarch64" "$folder/bin/"
}

has_onnxruntime_for_aarch64() { [ -e "$folder/aarch64/lib/libonnxruntime.so" ]; }

install_onnxruntime_for_aarch64() {
    local version library
    version=$("$python" -c 'import importlib.metadata as m; print(m.version("onnxruntime"))') ||
        fail "$python has no onnxruntime: set PYTHON to one that has it"
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps \
        --only-binary=:all: --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 \
        --dest "$temporary/wheel" "onnxruntime==$version"
    "$python" -m zipfile -e "$temporary"/wheel/*.whl "$temporary/wheel/content"
    library=$(echo "$temporary"/wheel/content/onnxruntime/capi/libonnxruntime.so.*)
    mkdir -p "$folder/aarch64/lib"
    # Under the name that programs look for, and that which they are linked by.
    cp "$library" "$folder/aarch64/lib/libonnxruntime.so.1"
    ln -sf libonnxruntime.so.1 "$folder/aarch64/lib/libonnxruntime.so"
}

main() {
    local check_only=no cross_aarch64=no argument missing part
    local packages=(cmake:cmake ninja-build:ninja g++:g++ pkg-config:pkg-config
        nlohmann-json3-dev libstb-dev)
    local parts=(onnxruntime_headers)
    folder=$(dirname "$0")/../build/native-dependencies
    for argument in "$@"; do
        case "$argument" in
            --check) check_only=yes ;;
            --sanitizers) packages+=(clang:clang "$(name_clang_runtime)" valgrind:valgrind) ;;
            --format) packages+=(clang-format:clang-format) ;;
            --cross-aarch64) cross_aarch64=yes ;;
            -h | --help)
                usage
                return
                ;;
            -*)
                usage >&2
                return 2
                ;;
            *) folder=$argument ;;
        esac
    done
    if [ "$cross_aarch64" = yes ]; then
        packages+=(g++-aarch64-linux-gnu:aarch64-linux-gnu-g++)
        parts+=(qemu_for_aarch64 onnxruntime_for_aarch64)
    fi
    command -v apt-get >/dev/null || fail "apt-get is not on this machine: docs/c-api.md has a list"
    is_debian || echo "note: this is for Debian only. Elsewhere it installs what apt has under the" \
        "same names; give onnxruntime's headers with -DONNXRUNTIME_ROOT=DIR (docs/c-api.md)" >&2

    mapfile -t missing < <(list_missing_packages "${packages[@]}")
    local missing_parts=()
    for part in "${parts[@]}"; do "has_$part" || missing_parts+=("$part"); done
    if [ "$check_only" = yes ]; then
        for part in "${missing_parts[@]}"; do missing+=("${part//_/ } in $folder"); done
        if [ ${#missing[@]} != 0 ]; then
            echo "missing, which scripts/install_native_dependencies.sh installs:"
            printf '  %s\n' "${missing[@]}"
        fi
        [ ${#missing[@]} = 0 ]
        return
    fi
    if [ ${#missing[@]} != 0 ]; then install_packages "${missing[@]}"; fi
    for part in "${missing_parts[@]}"; do "install_$part"; done
    echo "$(cd "$folder" 2>/dev/null && pwd || echo "the system") has what the build needs"
}

python=${PYTHON:-python3}
folder=
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
main "$@"
