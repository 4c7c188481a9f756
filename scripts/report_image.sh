#!/bin/bash
# Renew a picture of docs/images: the top of a report in Chromium (Debian: apt-get install chromium).
# Usage: scripts/report_image.sh [FOLDER OF A FINISHED STUDY [NAME OF THE PICTURE]]
# Without a study, the default one is run; without a name, the picture is report.png.
set -euo pipefail
cd "$(dirname "$0")/.."
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
study=${1:-$temporary/digits}
name=${2:-report}
python=.venv/bin/python
[ -x "$python" ] || python=python3
[ -n "${1:-}" ] || "$python" -m kdsearch run --name digits --out "$temporary"
# Commands on the page have the folders of this machine: the picture shows them as short ones.
folder=$(dirname "$(realpath "$study")")
files='--(data|space|config) |--(pretrained|student|teacher)-weights ([a-z0-9_:.]+=)?'
sed -E -e "s# --out '?$folder'?##g" -e "s#$folder/#results/#g" -e "s#($files)/[^ <]*/#\1#g" \
    "$study/report.html" >"$temporary/report.html"
chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
    --disable-background-networking --disable-component-update --disable-sync \
    --user-data-dir="$temporary/chromium" --hide-scrollbars --window-size=1240,1060 \
    --virtual-time-budget=10000 --screenshot="docs/images/$name.png" \
    "file://$temporary/report.html"
# A palette of 256 colours: a picture takes a third of the room.
"$python" -c 'import sys
from PIL import Image
Image.open(sys.argv[1]).convert("RGB").quantize(256, dither=0).save(sys.argv[1], optimize=True)' \
    "docs/images/$name.png"
