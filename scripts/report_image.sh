#!/bin/bash
# Renew docs/images/report.png: the top of a report in Chromium (Debian: apt-get install chromium).
# Usage: scripts/report_image.sh [FOLDER OF A FINISHED STUDY]; without one, the default study is run.
set -euo pipefail
cd "$(dirname "$0")/.."
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
study=${1:-$temporary/digits}
[ -n "${1:-}" ] || .venv/bin/python -m kdsearch run --name digits --out "$temporary"
chromium --headless --no-sandbox --disable-gpu --disable-quic --no-first-run \
    --disable-background-networking --disable-component-update --disable-sync \
    --user-data-dir="$temporary/chromium" --hide-scrollbars --window-size=1240,1060 \
    --virtual-time-budget=10000 --screenshot=docs/images/report.png \
    "file://$(realpath "$study")/report.html"
