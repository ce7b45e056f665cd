#!/bin/sh
# On Linux without a display: install what an invisible screen with OpenGL needs where we may, else name it.
set -eu
[ "$(uname -s)" = Linux ] || exit 0
[ -z "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ] || exit 0

packages="xvfb xauth libgl1 libgl1-mesa-dri libglx-mesa0 libegl1 libegl-mesa0 libglib2.0-0 libdbus-1-3 libfontconfig1
libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4 libxcb-image0 libxcb-keysyms1 libxcb-randr0 libxcb-render-util0
libxcb-shape0 libxcb-xkb1 libxcb-xfixes0 libxcb-sync1"

if command -v dpkg-query >/dev/null 2>&1; then
    missing=""
    for package in $packages; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q "ok installed" || missing="$missing $package"
    done
    [ -n "$missing" ] || exit 0
    if [ "$(id -u)" = 0 ]; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing >/dev/null
        exit 0
    fi
    echo "This machine has no display; to render without one, ask for these packages: sudo apt-get install$missing" >&2
    exit 1
fi
command -v xvfb-run >/dev/null 2>&1 && exit 0
echo "This machine has no display; to render without one, install Xvfb and Mesa's OpenGL (Debian calls them:" $packages")." >&2
exit 1
