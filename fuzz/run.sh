#!/bin/sh
# Builds the fuzz targets with the stable compiler and runs each for a bounded time: fuzz/run.sh [seconds] [target]...
# What crashes a target is kept in fuzz/artifacts/, what it learned in fuzz/target/corpus/.
set -eu
cd "$(dirname "$0")"
seconds=${1:-60}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- descriptors control graph

triple=x86_64-unknown-linux-gnu
export CARGO_TARGET_DIR="$PWD/target"
RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg fuzzing" \
    cargo build --release --target "$triple"

for target in "$@"; do
    mkdir -p "target/corpus/$target" artifacts
    # Where there are good examples, what is learned starts from them.
    examples=
    [ "$target" != graph ] || examples=../device/tests/models
    "target/$triple/release/$target" "target/corpus/$target" $examples \
        -max_total_time="$seconds" -artifact_prefix="artifacts/$target-" -print_final_stats=1 -timeout=10
done
