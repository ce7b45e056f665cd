#!/bin/sh
# On Linux: the libraries that Qt and OpenGL load and, without a display, an invisible one. Installed where we may, else named.
set -eu
[ "$(uname -s)" = Linux ] || exit 0

needs="libGL.so.1:libgl1 libEGL.so.1:libegl1 libglib-2.0.so.0:libglib2.0-0 libdbus-1.so.3:libdbus-1-3
libfontconfig.so.1:libfontconfig1 libxkbcommon-x11.so.0:libxkbcommon-x11-0 libxcb-cursor.so.0:libxcb-cursor0
libxcb-icccm.so.4:libxcb-icccm4 libxcb-image.so.0:libxcb-image0 libxcb-keysyms.so.1:libxcb-keysyms1
libxcb-randr.so.0:libxcb-randr0 libxcb-render-util.so.0:libxcb-render-util0 libxcb-shape.so.0:libxcb-shape0
libxcb-xkb.so.1:libxcb-xkb1 libxcb-xfixes.so.0:libxcb-xfixes0 libxcb-sync.so.1:libxcb-sync1 ensurepip:python3-venv"
if [ -z "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ]; then
    needs="$needs xvfb-run:xvfb xauth:xauth libGLX_mesa.so.0:libglx-mesa0 libGLX_mesa.so.0:libgl1-mesa-dri libEGL_mesa.so.0:libegl-mesa0"
fi

# The loader is asked, not dpkg: package names change between releases, and not every Linux has dpkg.
missing=$("${PYTHON:-python3}" - $needs <<'PY'
import ctypes, importlib.util, shutil, sys

def found(name):
    if ".so." not in name:
        return shutil.which(name) or importlib.util.find_spec(name.replace("-", "_"))
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None

print(*(package for name, package in (need.split(":") for need in sys.argv[1:]) if not found(name)))
PY
)
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
    exit 0
fi
echo "This machine lacks what the window needs; on Debian or Ubuntu: sudo apt-get install" $missing "(elsewhere their like)." >&2
exit 1
