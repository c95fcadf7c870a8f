#!/usr/bin/env bash
# Several cameras on one worker: `bash examples/many_cameras.sh MODEL.diad [SECONDS]`. Four test pictures stand for cameras.
set -euo pipefail
cd "$(dirname "$0")/.."
model=${1:?expected a model file, for instance demo/demo.diad}
frames=$((${2:-10} * 5))
export GST_PLUGIN_PATH="$PWD/target/release${GST_PLUGIN_PATH:+:$GST_PLUGIN_PATH}"
line=()
for pattern in smpte ball circular snow; do
    line+=(videotestsrc "pattern=$pattern" is-live=true "num-buffers=$frames" !
        "video/x-raw,format=I420,width=640,height=480,framerate=5/1" !
        diadfilter "model=$model" "name=$pattern" ! diadmeta2json ! filesink "location=camera_$pattern.jsonl")
done
gst-launch-1.0 -e "${line[@]}"
for pattern in smpte ball circular snow; do
    printf '%s: %s frames, %s not inspected\n' "$pattern" "$(wc -l <"camera_$pattern.jsonl")" \
        "$(grep -c '"verdict":"uninspected"' "camera_$pattern.jsonl" || true)"
done
