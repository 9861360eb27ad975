#!/bin/sh
# Everything that a GPU has to show, in under nine minutes, on a machine with its driver and without cargo or network.
#
#   ./run.sh [FOLDER]     results.json and results.md go into FOLDER, else $OUT, else results/ beside this file
#
# Runs in the folder that pack.sh made. A part that fails or takes too long ends alone; what it had measured by then is in the results.
# Exit status: 0 when everything was measured and correct, 1 otherwise.
set -u
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-${OUT:-$here/results}}
bench=$here/bin/rota-bench
# Seconds of each part, 520 in all; one that does not heed the end of its time gets 5 more.
kernels_s=${KERNELS_S:-170} models_s=${MODELS_S:-130} daemon_s=${DAEMON_S:-130} peers_s=${PEERS_S:-80} report_s=10

[ -x "$bench" ] || { echo "run.sh: $bench is not there: bench/gpu/pack.sh makes the folder that this runs in" >&2; exit 2; }
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
rm -f "$out/parts.tsv" "$out"/*.jsonl "$out/results.json" "$out/results.md"

small=
if [ -e "$here/stand-in/libcuda.so.1" ]; then
    echo "run.sh: with the stand-in driver, not on a GPU: times mean nothing"
    export ROTA_CUDA_DRIVER="$here/stand-in/libcuda.so.1"
    small=1
    # With ROTA_STANDIN_GPU, when that GPU would do what it is asked for; see README.md.
    if [ "${ROTA_STANDIN_GPU:-}" ]; then export ROTA_STANDIN_TRACE="$out/trace.json"; fi
fi
status=0

# part NAME SECONDS COMMAND...: runs it for so long at most, and writes down how it ended.
part() {
    name=$1 seconds=$2
    shift 2
    echo "run.sh: $name, at most $seconds s"
    begin=$(date +%s)
    timeout -k 5 "$seconds" "$@" > "$out/$name.log" 2>&1
    ended=$?
    printf '%s\t%s\t%s\n' "$name" "$(($(date +%s) - begin))" "$ended" >> "$out/parts.tsv"
    [ "$ended" -eq 0 ] || { status=1; echo "run.sh: $name ended with status $ended:"; tail -n 3 "$out/$name.log"; }
}

part kernels "$kernels_s" env -u ROTA_STANDIN_GPU "$bench" gpu kernels ${small:+--small} --output "$out/kernels.jsonl"
part models "$models_s" "$bench" gpu models ${small:+--samples} ${small:+1} \
    --repository "$here/models" --references "$here/references" --output "$out/models.jsonl"
if [ -d "$here/heads" ]; then heads=$here/heads; else heads=; fi
part daemon "$daemon_s" "$bench" gpu daemon ${small:+--length-ms} ${small:+1000} ${small:+--slo-factor} ${small:+50} --rota "$here/bin/rota" \
    --repository "$here/models" --references "$here/references" ${heads:+--heads} ${heads:+"$heads"} \
    --models "$out/models.jsonl" --output "$out/daemon.jsonl"
if command -v python3 > /dev/null 2>&1; then
    # Without torch or onnxruntime-gpu, or without a real GPU, it says so and is done.
    part peers "$peers_s" python3 "$here/peers.py" --results "$out" --models "$here/models" --references "$here/references" \
        --seconds "$((peers_s - 15))"
else
    echo "run.sh: no python3, so no peers"
fi
timeout "$report_s" "$bench" gpu report --folder "$out" > /dev/null || { echo "run.sh: the report failed" >&2; exit 1; }
[ -e "$here/left-out.txt" ] && cat "$here/left-out.txt" >> "$out/results.md"
echo "run.sh: $out/results.md"
exit "$status"
