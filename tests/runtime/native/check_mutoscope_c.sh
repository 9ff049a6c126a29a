#!/usr/bin/env bash
# check_mutoscope_c.sh BUNDLE PROGRAM...: mutoscope-c, by its outputs, messages and exit codes.
set -euo pipefail
bundle=$1
shift
program=("$@")
folder=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || kill -KILL $pid 2>/dev/null || true; rm -rf "$folder"' EXIT
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
grep -q '"seed": 7, "scheduler": "few-step", "num_inference_steps": 2' said.out ||
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

# Written straight into, with no other name first.
"${program[@]}" "${common[@]}" --quiet --format rgb -o >(cat >through.rgb)
wait $!
cmp through.rgb first.rgb || fail "a process substitution got something else"
"${program[@]}" "${common[@]}" --quiet --format rgb --force -o /dev/stdout >through.rgb
cmp through.rgb first.rgb || fail "/dev/stdout got something else"
[ -e /dev/stdout ] && [ -L /dev/stdout ] || fail "/dev/stdout was replaced"
ln -s /dev/null sink.rgb
expect 0 "" "${common[@]}" --num-frames 1 --force -o sink.rgb
[ "$(readlink sink.rgb)" = /dev/null ] || fail "a link to a device was replaced"
expect 1 "/dev/full cannot be written: No space left" "${common[@]}" --num-frames 1 -o /dev/full

# Found before any work, so that there is no progress.
expect_early() {
    expect "$1" "$2" --progress "${@:3}"
    ! grep -q "1 of" said.err || fail "'${*:3}' was found late: $(cat said.err)"
}
expect_early 2 "OUT is empty" "${common[@]}" -o ""
expect_early 1 "new.rgb/ ends like a folder" "${common[@]}" -o new.rgb/
expect_early 1 "no/such cannot be written" "${common[@]}" -o no/such
expect_early 1 "no/such.rgb cannot be written" "${common[@]}" -o no/such.rgb
expect_early 1 "first.rgb/a.rgb cannot be written" "${common[@]}" -o first.rgb/a.rgb
expect_early 1 ". has no name of its own" "${common[@]}" --force -o .
expect_early 1 "/ has no name of its own" "${common[@]}" --force -o /
expect_early 1 "frames is a folder" "${common[@]}" --format rgb --force -o frames
expect_early 1 "first.rgb is a file" "${common[@]}" --format png --force -o first.rgb
expect_early 1 "no.png cannot be read" "${common[@]}" --image no.png -o new.rgb

expect_rate() {
    expect 0 "" "${common[@]}" --num-frames 1 --num-inference-steps 1 --frame-rate "$1" --force \
        -o rate.y4m
    grep -aq " F$2 " rate.y4m || fail "--frame-rate $1: $(head -n 1 rate.y4m)"
}
expect_rate 0.0003 1:3333
expect_rate 0.01 1:100
expect_rate 12.5 25:2
expect_rate 59.94005994 60000:1001

expect 0 "" --info --json "$bundle"
grep -q '"schedulers": {.*"ddim": \[1, 2' said.out || fail "--info --json: $(cat said.out)"
expect 0 "" --info "$bundle"
! grep -q conditions said.out || fail "--info shows conditions where there are none"
grep -q "num_frames 1 to 16 at once, longer in windows" said.out || fail "--info: $(cat said.out)"
expect 0 "" --help
expect 0 "" --version

expect 1 "clip.mp4 has an unknown ending" "${common[@]}" -o clip.mp4
expect 1 "nothing does not exist" nothing "a" -o new.rgb
expect 1 "clip.rgb is not an image" "${common[@]}" --image clip.rgb -o new.rgb
expect 1 "image" "${common[@]}" --image clip.png -o new.rgb
expect 1 "context_length is 400" "${common[@]}" --context-length 400 -o new.rgb
expect 1 "context_stride is 3" "${common[@]}" --context-length 2 --context-stride 3 -o new.rgb
expect 2 "--context-length is '0'" "${common[@]}" --context-length 0 -o new.rgb
expect 2 "BUNDLE is missing"
expect 2 "--seed is '-1'" "${common[@]}" --seed -1 -o new.rgb
expect 2 "--num-frames is '0'" "${common[@]}" --num-frames 0 -o new.rgb
for number in "" " 7" 0x10 +7 7e0x nan; do
    expect 2 "--seed is '$number'" "${common[@]}" --seed "$number" -o new.rgb
    expect 2 "--num-frames is '$number'" "${common[@]}" --num-frames "$number" -o new.rgb
    expect 2 "--memory-limit is '$number'" "${common[@]}" --memory-limit "$number" -o new.rgb
done
for number in "" " 7" 0x10 nan inf 1e999 1e 7-; do
    expect 2 "--frame-rate is '$number'" "${common[@]}" --frame-rate "$number" -o new.rgb
    expect 2 "--condition x is '$number'" "${common[@]}" --condition "x=$number" -o new.rgb
done
expect 2 "--memory-limit is '1x'" "${common[@]}" --memory-limit 1x -o new.rgb
expect 2 "--condition is 'x'" "${common[@]}" --condition x -o new.rgb
expect 2 "" "${common[@]}" --no-such-option

# A reader that leaves early has what it wants.
"${program[@]}" "${common[@]}" --quiet --height 192 --width 192 -o - | head -c 100 >head.y4m
check_bytes head.y4m 100
code=0
"${program[@]}" "${common[@]}" -o - >/dev/full 2>said.err || code=$?
[ "$code" = 1 ] || fail "a full device: exit code $code"

# start TEXT ARGUMENT...: a long one in the background, until it says TEXT.
start() {
    local text=$1
    shift
    : >said.err
    "${program[@]}" "$bundle" "a" --height 256 --width 256 --progress "$@" 2>said.err &
    pid=$!
    until grep -q "$text" said.err; do
        kill -0 $pid || fail "'$*' ended: $(cat said.err)"
        sleep 0.05
    done
}

# finish CODE TEXT: what was started ends with this exit code, and says TEXT.
finish() {
    local code=0
    wait $pid || code=$?
    pid=
    [ "$code" = "$1" ] || fail "exit code $code, not $1: $(cat said.err)"
    grep -q "$2" said.err || fail "not '$2' but: $(cat said.err)"
}

# Interrupted in the middle of a step.
for signal in TERM HUP; do
    start "denoising 1 of" -o long.rgb
    kill -$signal $pid
    finish 130 "error: interrupted"
done

# Interrupted while nobody reads a named pipe, whose opening waits for that. By then SIGTERM and
# SIGHUP are blocked, as the mask says, and SIGINT, unless this shell has it ignored.
mkfifo fifo
: >said.err
"${program[@]}" "$bundle" "a" -o fifo 2>said.err &
pid=$!
for _ in {1..200}; do # valgrind shows a mask of its own
    kill -0 $pid || fail "it ended: $(cat said.err)"
    ! grep -q '^SigBlk:.*400[13]$' /proc/$pid/status || break
    sleep 0.05
done
kill -TERM $pid
finish 130 "error: interrupted"
# While a reader takes the first two lines and no frame, which is larger than the pipe.
exec 3<>fifo
start "denoising 1 of" --num-inference-steps 1 --num-frames 1 -o fifo
read -r -u 3 header
read -r -u 3 header
[ "$header" = FRAME ] || fail "a named pipe has '$header'"
kill -TERM $pid
finish 130 "error: interrupted"
exec 3<&-

# What others write to the same place meanwhile is not lost, nor is what was made.
short=(--num-inference-steps 4 --num-frames 2)
start "encoding 1 of" "${short[@]}" -o late.rgb
echo theirs >late.rgb
finish 1 "late.rgb cannot be written: File exists; the frames are in late.rgb.partial-"
[ "$(<late.rgb)" = theirs ] || fail "what others wrote was replaced without --force"
check_bytes "$(echo late.rgb.partial-*)" $((2 * 256 * 256 * 3))
rm late.rgb.partial-*
rm frames/notes.txt
start "encoding 1 of" "${short[@]}" --force -o frames
echo theirs >frames/notes.txt
finish 0 "others have written to the old folder, which is now frames.old-"
[ "$(echo frames/*)" = "frames/frame_0001.png frames/frame_0002.png" ] || fail "$(echo frames/*)"
[ "$(cat frames.old-*/notes.txt)" = theirs ] || fail "frames.old-*: $(echo frames.old-*/*)"

left=$(find . -name '*.partial-*' -o -name 'new.*' -o -name 'long.*')
[ -z "$left" ] || fail "left behind: $left"
