#!/usr/bin/env bash
# check_installation.sh CMAKE BUILD PROGRAM ONNXRUNTIME: install BUILD into a new folder, and build
# PROGRAM with what is there alone, by CMake and by pkg-config, with both libraries.
set -euo pipefail
cmake=$1 build=$2 program=$3 onnxruntime=$4
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
prefix="$folder/prefix"
onnxruntime_folder=$(dirname "$onnxruntime")

check_runs() {
    # Without a bundle it says how it is called.
    local code=0
    LD_LIBRARY_PATH="$libdir:$onnxruntime_folder" "$1" 2>"$folder/said" || code=$?
    if [ "$code" != 2 ] || ! grep -q "^usage:" "$folder/said"; then
        echo "$1 exited with $code: $(cat "$folder/said")" >&2
        exit 1
    fi
}

"$cmake" --install "$build" --prefix "$prefix" >"$folder/log"
libdir=$(dirname "$(find "$prefix" -name libmutoscope.so)")
if objdump -p "$libdir/libmutoscope.so" | grep -q "VERS_"; then
    echo "libmutoscope.so loads with one version of onnxruntime alone" >&2
    exit 1
fi
mkdir "$folder/project"
cp "$program" "$folder/project/program.c"
cat >"$folder/project/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.20)
project(program C CXX)
find_package(mutoscope 0.1 CONFIG REQUIRED)
add_executable(with_shared program.c)
target_link_libraries(with_shared PRIVATE mutoscope::mutoscope)
add_executable(with_static program.c)
target_link_libraries(with_static PRIVATE mutoscope::mutoscope_static)
END
"$cmake" -S "$folder/project" -B "$folder/build" -Dmutoscope_DIR="$libdir/cmake/mutoscope" \
    -DONNXRUNTIME_LIBRARY="$onnxruntime" >"$folder/log" || { cat "$folder/log"; exit 1; }
"$cmake" --build "$folder/build" >"$folder/log" || { cat "$folder/log"; exit 1; }
check_runs "$folder/build/with_shared"
check_runs "$folder/build/with_static"
echo "find_package: shared and static"

if ! command -v pkg-config >/dev/null; then
    echo "pkg-config is not installed: not checked"
    exit 0
fi
export PKG_CONFIG_PATH="$libdir/pkgconfig"
read -ra flags <<<"$(pkg-config --cflags --libs mutoscope)"
cc -o "$folder/by_pkg_config" "$program" "${flags[@]}" -Wl,-rpath-link,"$onnxruntime_folder"
check_runs "$folder/by_pkg_config"
read -ra flags <<<"$(pkg-config --cflags --libs --static mutoscope)"
cc -o "$folder/by_pkg_config_static" "$program" -L"$onnxruntime_folder" \
    "${flags[@]/-lmutoscope/-l:libmutoscope.a}"
check_runs "$folder/by_pkg_config_static"
echo "pkg-config: shared and static"
