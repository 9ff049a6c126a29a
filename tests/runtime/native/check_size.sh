#!/usr/bin/env bash
# check_size.sh STRIP LIBRARY BYTES: the stripped library is smaller than that.
set -euo pipefail
strip=$1 library=$2 limit=$3
stripped=$(mktemp)
trap 'rm -f "$stripped"' EXIT
"$strip" --strip-unneeded -o "$stripped" "$library"
size=$(stat -c %s "$stripped")
echo "$size bytes"
[ "$size" -lt "$limit" ]
