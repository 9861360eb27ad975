#!/bin/sh
# Makes the folder that bench/gpu/run.sh runs in, on a machine with a GPU and without cargo: programs, models, references; and
# FOLDER.tar.gz of it, to carry there.
#
#   bench/gpu/pack.sh FOLDER          from release programs and models/fetched
#   STAND_IN=1 bench/gpu/pack.sh …    with the stand-in driver and the models of models/tiny, to try it without a GPU
#   PROFILE=debug …                   with the programs of that profile, built if need be
#   MODELS="photo magika" …           these models only
#   HEADS=4 …                         so many of the models that share a trunk, each of which holds all of it (2)
#   LIMIT_MB=200 …                    what the archive may take (64); the largest models are left out, and named, until it does
set -eu
folder=${1:?usage: bench/gpu/pack.sh FOLDER}
root=$(cd "$(dirname "$0")/../.." && pwd)
profile=${PROFILE:-release}
cargo=${CARGO:-cargo}
limit_mb=${LIMIT_MB:-64}

cd "$root"
case $profile in
    release) $cargo build --release -p rota -p rota-bench ;;
    debug) $cargo build -p rota -p rota-bench ;;
    *) echo "pack.sh: PROFILE=$profile: release or debug" >&2; exit 2 ;;
esac
if [ "${STAND_IN:-}" ]; then source=models/tiny/repository heads=; else source=models/fetched/repository heads=models/fetched/heads; fi
[ -d "$source" ] || { echo "pack.sh: $source is not there: run 'make models' first" >&2; exit 2; }

rm -rf "$folder"
mkdir -p "$folder/bin" "$folder/models" "$folder/references"
for program in rota rota-bench; do
    cp "target/$profile/$program" "$folder/bin/"
    strip "$folder/bin/$program" 2> /dev/null || true
done
cp bench/gpu/run.sh bench/gpu/peers.py "$folder/"
for model in ${MODELS:-$(ls "$source")}; do
    [ -d "$source/$model" ] || { echo "pack.sh: $source has no model $model" >&2; exit 2; }
    cp -rL "$source/$model" "$folder/models/"
done
heads_left=${HEADS:-2}
if [ "$heads" ] && [ "$heads_left" -ge 2 ] && ls "$heads"/*/1/model.onnx > /dev/null 2>&1; then
    mkdir "$folder/heads"
    for head in "$heads"/*/; do
        [ "$heads_left" -gt 0 ] || break
        [ -e "$head/1/model.onnx" ] || continue
        cp -rL "$head" "$folder/heads/"
        heads_left=$((heads_left - 1))
    done
else
    echo "left out: models that share a trunk (models/heads.py makes them)" | tee -a "$folder/left-out.txt"
fi
"target/$profile/rota-bench" gpu references --repository "$source" --output "$folder/references" --range magika:bytes=0..255
for reference in "$folder"/references/*; do
    [ -d "$folder/models/$(basename "$reference")" ] || rm -r "$reference"
done

if [ "${STAND_IN:-}" ]; then
    library=$("target/$profile/rota-bench" gpu stand-in)
    mkdir "$folder/stand-in"
    cp "$library" "$folder/stand-in/libcuda.so.1"
fi

# The least that the other machine's C library has to be.
glibc=$(objdump -T "$folder/bin/rota" "$folder/bin/rota-bench" 2> /dev/null | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -1)
archive=${folder%/}.tar.gz
size() {
    tar -C "$(dirname "$folder")" -czf "$archive" "$(basename "$folder")"
    du -m "$archive" | cut -f1
}
# The largest model goes first, until the rest fits.
while megabytes=$(size) && [ "$megabytes" -gt "$limit_mb" ]; do
    largest=$(du -s "$folder"/models/* | sort -n | tail -1 | cut -f2)
    [ "$largest" ] || break
    echo "left out: model $(basename "$largest"), to stay under $limit_mb MB" | tee -a "$folder/left-out.txt"
    rm -r "$largest" "$folder/references/$(basename "$largest")"
done
echo "$archive: $megabytes MB; needs ${glibc:-an unknown C library}; on the machine with the GPU: tar xzf it, then $(basename "$folder")/run.sh"
