#!/bin/sh
# Generated examples and firmware under gcc -fanalyzer, clang-tidy and cppcheck, those that are
# installed. What they are told to leave, and why, is said in .clang-tidy and firmware/cppcheck.txt.
set -eu
cd "$(dirname "$0")/.."
places="-Ifirmware/include -Ifirmware/link -Ifirmware/port/common -Ifirmware/kernels -Ifirmware/kernels/plain"
have() { command -v "$1" >/dev/null 2>&1; }

check() { # folder of a generated example, sources
    example=$1
    shift
    for source in "$@"; do
        # Zero warnings, whatever the analyzer calls them.
        if have gcc; then
            # shellcheck disable=SC2086
            gcc -std=c11 -O1 -fanalyzer -Werror $places "-I$example" -c "$source" -o /dev/null
        fi
        if have clang-tidy; then
            # shellcheck disable=SC2086
            clang-tidy --quiet --warnings-as-errors='*' "$source" -- -std=c11 $places "-I$example"
        fi
    done
    if have cppcheck; then
        # shellcheck disable=SC2086
        cppcheck --quiet --std=c11 --error-exitcode=1 --enable=warning,performance,portability \
            --suppressions-list=firmware/cppcheck.txt $places "-I$example" "$@"
    fi
}

for example in tests/golden/*/; do
    check "$example" "$example/sf_model.c"
done
# Everything that a computer can compile; of the boards' own files cppcheck reads the rest.
check tests/golden/stream-prefetch/ firmware/runtime/*.c firmware/link/*.c firmware/flash/*.c \
    firmware/kernels/plain/*.c firmware/port/host/*.c firmware/port/library/*.c \
    firmware/port/host-flash/flash_*.c firmware/port/host-flash/storage.c
if have cppcheck; then
    # shellcheck disable=SC2086
    cppcheck --quiet --std=c11 --error-exitcode=1 --enable=warning,performance,portability \
        --suppressions-list=firmware/cppcheck.txt $places -Itests/golden/stream-prefetch firmware/port
fi
