#!/bin/sh
# Installs the compilers and emulators that boards and tests use and that are missing, on Debian and
# Ubuntu. Without root or sudo it prints the one command to run; under CI=true that is an error.
set -eu
missing=""
want() { # command, packages that bring it
    command -v "$1" >/dev/null 2>&1 || { shift; missing="$missing $*"; }
}
want gcc gcc libc6-dev
want clang clang libclang-rt-dev
# clang's sanitizers and libFuzzer are a package of their own
if command -v clang >/dev/null 2>&1 && ! [ -e "$(clang -print-runtime-dir)/libclang_rt.fuzzer-$(uname -m).a" ]; then
    missing="$missing libclang-rt-dev"
fi
want cppcheck cppcheck
want clang-tidy clang-tidy
want arm-none-eabi-gcc gcc-arm-none-eabi libnewlib-arm-none-eabi
want aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu libc6-dev-arm64-cross
want riscv64-unknown-elf-gcc gcc-riscv64-unknown-elf
want xtensa-lx106-elf-gcc gcc-xtensa-lx106 picolibc-xtensa-lx106-elf
want qemu-system-riscv32 qemu-system-misc
want qemu-system-arm qemu-system-arm
want qemu-aarch64 qemu-user
want node nodejs
want npm npm
# 32-bit programs on x86-64. gcc-multilib would bring them, but excludes the cross compilers. The
# names carry gcc's version, so they come in a second run, when gcc is there.
gcc=$(gcc -dumpversion 2>/dev/null | cut -d. -f1)
if [ "$(uname -m)" = x86_64 ] && [ -n "$gcc" ] && ! [ -e "/usr/lib/gcc/x86_64-linux-gnu/$gcc/32/libstdc++.a" ]; then
    missing="$missing libc6-dev-i386 lib32gcc-$gcc-dev lib32stdc++-$gcc-dev"
fi
[ -n "$missing" ] || exit 0
if [ "$(uname -s)" != Linux ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "error: these packages are missing, under the names that Debian gives them:$missing; install them, and tests of boards run too" >&2
    [ "${CI:-}" = true ] && exit 1
    exit 0
fi
if [ "$(id -u)" = 0 ]; then
    root=""
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    root="sudo"
else
    echo "error: compilers and emulators are missing; run: sudo apt-get install -y --no-install-recommends$missing" >&2
    [ "${CI:-}" = true ] && exit 1
    exit 0
fi
$root apt-get update -qq
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive $root apt-get install -y -qq --no-install-recommends $missing
[ "${1:-}" = again ] || exec sh "$0" again
