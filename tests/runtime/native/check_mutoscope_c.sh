#!/usr/bin/env bash
# check_mutoscope_c.sh BUNDLE PROGRAM...: mutoscope-c, by its outputs, messages and exit codes.
set -euo pipefail
bundle=$1
shift
program=("$@")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
common=("$bundle" "a red circle" --seed 7 --num-frames 2 --num-inference-steps 2)

fail() {
    echo "$*" >&2
    exit 1
}

# expect CODE TEXT ARGUMENT...: the exit code, and a part of what is said on stderr.
expect() {
    local code=0 wanted=$1 text=$2
    shift 2
    "${program[@]}" "$@" >said.out 2>said.err || code=$?
    [ "$code" = "$wanted" ] || fail "'$*' exited with $code, not $wanted: $(cat said.err)"
    [[ $(<said.err) == *"$text"* ]] || fail "'$*' said '$(<said.err)', not '$text'"
}

check_bytes() {
    local size
    size=$(stat -c %s "$1")
    [ "$size" = "$2" ] || fail "$1 has $size bytes, not $2"
}

expect 0 "clip.rgb: seed 7" "${common[@]}" -o clip.rgb
check_bytes clip.rgb $((2 * 64 * 64 * 3))
expect 1 "clip.rgb exists: use --force" "${common[@]}" -o clip.rgb
cp clip.rgb first.rgb
expect 0 "" "${common[@]}" -o clip.rgb --force --json
cmp clip.rgb first.rgb || fail "the same seed made two videos"
grep -q '"seed": 7, "scheduler": "ddim", "num_inference_steps": 2' said.out ||
    fail "--json: $(cat said.out)"

header="YUV4MPEG2 W48 H32 F24000:1001 Ip A1:1 C444 XCOLORRANGE=LIMITED"
expect 0 "" "${common[@]}" --quiet --height 32 --width 48 --frame-rate 23.976023976 -o clip.y4m
[ "$(head -n 1 clip.y4m | tr -d '\0')" = "$header" ] || fail "Y4M: $(head -c 80 clip.y4m)"
check_bytes clip.y4m $((${#header} + 1 + 2 * (6 + 48 * 32 * 3)))
[ ! -s said.err ] || fail "--quiet said $(cat said.err)"
"${program[@]}" "${common[@]}" --height 32 --width 48 --frame-rate 23.976023976 --quiet -o - |
    cmp - clip.y4m || fail "stdout has not what a file has"

expect 0 "" "${common[@]}" -o frames
[ "$(echo frames/*)" = "frames/frame_0001.png frames/frame_0002.png" ] || fail "$(echo frames/*)"
expect 0 "" "${common[@]}" -o frames --force
touch frames/notes.txt
expect 1 "holds more than frame_0001.png" "${common[@]}" -o frames --force
expect 1 "holds one image and the clip has 2 frames" "${common[@]}" -o clip.png
expect 0 "" "${common[@]}" --num-frames 1 -o clip.png
[ "$(head -c 4 clip.png | tail -c 3)" = PNG ] || fail "clip.png is no PNG"

expect 0 "" --info --json "$bundle"
grep -q '"schedulers": {"ddim": \[1, 2' said.out || fail "--info --json: $(cat said.out)"
expect 0 "" --info "$bundle"
expect 0 "" --help
expect 0 "" --version

expect 1 "no/clip.rgb cannot be written" "${common[@]}" -o no/clip.rgb
expect 1 "clip.mp4 has an unknown ending" "${common[@]}" -o clip.mp4
expect 1 "nothing does not exist" nothing "a" -o new.rgb
expect 1 "clip.rgb is not an image" "${common[@]}" --image clip.rgb -o new.rgb
expect 1 "image" "${common[@]}" --image clip.png -o new.rgb
expect 1 "num_frames is 400" "${common[@]}" --num-frames 400 -o new.rgb
expect 2 "BUNDLE is missing"
expect 2 "--seed is '-1'" "${common[@]}" --seed -1 -o new.rgb
expect 2 "--num-frames is '0'" "${common[@]}" --num-frames 0 -o new.rgb
expect 2 "--memory-limit is '1x'" "${common[@]}" --memory-limit 1x -o new.rgb
expect 2 "--condition is 'x'" "${common[@]}" --condition x -o new.rgb
expect 2 "" "${common[@]}" --no-such-option

# A reader that leaves early has what it wants.
"${program[@]}" "${common[@]}" --quiet --height 192 --width 192 -o - | head -c 100 >head.y4m
check_bytes head.y4m 100
code=0
"${program[@]}" "${common[@]}" -o - >/dev/full 2>said.err || code=$?
[ "$code" = 1 ] || fail "a full device: exit code $code"

# Interrupted in the middle of a step.
"${program[@]}" "$bundle" "a" --height 512 --width 512 -o long.rgb 2>said.err &
sleep 2
kill -TERM $!
code=0
wait $! || code=$?
[ "$code" = 130 ] || fail "interrupted: exit code $code: $(cat said.err)"
left=$(find . -name '*partial*' -o -name 'new.*' -o -name 'long.*')
[ -z "$left" ] || fail "left behind: $left"
