#!/bin/sh
# Run a command on this machine's screen, or on an invisible one where a Linux machine has none.
set -eu
if [ "$(uname -s)" != Linux ] || [ -n "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ]; then
    exec "$@"
fi
sh "$(dirname "$0")/system_packages.sh" # the environment may have been made while there was a screen
case "$*" in *"napari-lrmil demo"*) set -- "$@" --headless ;; esac
exec xvfb-run -a -s "-screen 0 1920x1200x24 +extension GLX" "$@"
