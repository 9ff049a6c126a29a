#!/usr/bin/env bash
# check_symbols.sh NM LIBRARY HEADER: what the library exports is what the header declares.
set -euo pipefail
nm=$1 library=$2 header=$3
exported=$("$nm" -D --defined-only "$library" | awk '{print $NF}' | sort)
declared=$(grep -oE '\bmutoscope_[a-z_0-9]+\(' "$header" | tr -d '(' | sort -u)
declared=$(comm -12 <(grep -A1 MUTOSCOPE_API "$header" | grep -oE 'mutoscope_[a-z_0-9]+' | sort -u) \
    <(echo "$declared"))
# Sanitizers add symbols of their own to a program, not to what a version script hides.
diff <(echo "$declared") <(echo "$exported") || {
    echo "the header's functions (<) and the library's symbols (>) are not the same" >&2
    exit 1
}
