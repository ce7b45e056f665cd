#!/bin/sh
# Make .venv with the pinned set, and on Linux without a screen the system packages that an invisible one needs.
set -eu
python="${PYTHON:-python3}"

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "napari-lrmil needs Python 3.11 or newer; '$python' is not: call make PYTHON=/path/to/python3.11" >&2
    exit 1
fi
sh "$(dirname "$0")/system_packages.sh"
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet -c constraints.txt -e ".[gui,train,distributed,openvino,ome,lazyslide,dicom,dev]"
touch .venv/.ready
