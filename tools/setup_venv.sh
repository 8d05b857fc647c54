#!/bin/sh
# Set up .venv: everything that `make` needs, in the versions of constraints.txt.
#
#   [PYTHON=python3.13] [DETECTRON2=<requirement or path for pip>] [VENV=.venv] \
#       sh tools/setup_venv.sh
#
# A complete environment of these sources is left alone. Finished steps are listed in its file
# set-up, and the next run after an interruption continues after the last of them. An environment
# that is damaged, or whose packages are incomplete, is created again.

cd "$(dirname "$0")/.." || exit 1

venv=${VENV:-.venv}
state=$venv/set-up
lock=$venv/lock
python=$venv/bin/python
key="$(cat constraints.txt setup.py tools/setup_venv.sh point_rend/cli/install_detectron2.py | cksum) $(pwd -P)"

fail() {
    printf '\n*** %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '    %s\n' "$line" >&2; done
    exit 1
}

# Python 3.11 to 3.14 with the modules for virtual environments.
usable() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' \
        >/dev/null 2>&1
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        usable "$PYTHON" && echo "$PYTHON" && return
        fail "PYTHON=$PYTHON cannot be used." "It must be Python 3.11 to 3.14 with the modules venv and ensurepip." \
            "Its version: $("$PYTHON" --version 2>&1 | head -n 1)"
    fi
    for candidate in python3.11 python3.12 python3.13 python3.14 python3 python; do
        usable "$candidate" && echo "$candidate" && return
    done
    fail "No Python 3.11 to 3.14 was found (with the modules venv and ensurepip)." \
        "Debian, Ubuntu: sudo apt install python3 python3-venv" \
        "Elsewhere: https://www.python.org/downloads/, or choose one: make PYTHON=/path/to/python3.13"
}

version_of() { "$1" -c 'import sys; print(sys.version_info[:2])' 2>/dev/null; }

finished() { grep -qsxF "$1" "$state"; }

# The environment belongs to these sources and to the requested Python, and its interpreter runs.
belongs() {
    [ "$(head -n 1 "$state" 2>/dev/null)" = "$key" ] && usable "$python" &&
        { [ -z "${PYTHON:-}" ] || [ "$(version_of "$PYTHON")" = "$(version_of "$python")" ]; }
}

# The packages of the finished steps are still installed.
has_packages() {
    set -- torch torchvision numpy cv2 pycocotools fvcore point_rend
    if finished "step 4"; then set -- "$@" detectron2; fi
    "$python" -c '
import importlib.util, sys
sys.exit(any(importlib.util.find_spec(name) is None for name in sys.argv[1:]))' "$@" 2>/dev/null
}

# step NUMBER TITLE ADVICE COMMAND...: run the command unless the step is finished.
step() {
    number=$1 title=$2 advice=$3
    shift 3
    if finished "step $number"; then return; fi
    printf '\n=== Setting up, step %s of 5: %s\n' "$number" "$title"
    "$@" || fail "Setting up stopped in step $number of 5 ($title)." "$advice" \
        "Then run the same make command again; earlier steps are kept where possible."
    echo "step $number" >>"$state"
}

if belongs && finished "step 5" && has_packages; then
    if [ -n "${DETECTRON2:-}" ]; then
        echo "DETECTRON2 is not used: $venv already has a Detectron2. To replace it, first run: make clean"
    fi
    exit 0
fi

base=$(find_python) || exit 1

# One set-up at a time. The system releases the lock when this shell and its children have ended.
if [ -e "$venv" ] && [ ! -e "$lock" ]; then
    fail "$venv was not created by this script." "Move it away, or remove it: make clean"
fi
mkdir -p "$venv" && touch "$lock" || fail "The folder $(pwd) is not writable."
exec 9>"$lock"
"$base" -c '
import fcntl
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("Another set-up is running; waiting for its end ...", flush=True)
    fcntl.flock(9, fcntl.LOCK_EX)
except OSError:  # a file system without locks
    pass'

if ! { belongs && finished "step 3" && has_packages; }; then
    rm -f "$state"
    find "$venv" -mindepth 1 -maxdepth 1 ! -path "$lock" -exec rm -rf {} +
fi

network="Check the network (a proxy?) and the free disk space (7 GB)."
[ -f "$state" ] || { echo "$key" >"$state.new" && mv "$state.new" "$state"; }
step 1 "an empty $venv with $base, $("$base" --version)" "Check the free disk space." \
    "$base" -m venv "$venv"
step 2 "pip and setuptools" "$network" \
    "$python" -m pip install --upgrade --constraint constraints.txt pip setuptools wheel
step 3 "PyTorch and the other packages (3 GB, some minutes)" "$network" \
    "$python" -m pip install --no-build-isolation --constraint constraints.txt --editable '.[dev]'
step 4 "Detectron2" "$network With DETECTRON2=...: check it, and the C++ compiler." \
    "$python" tools/install_detectron2.py --constraint constraints.txt
step 5 "a test import of everything" "Run: make clean" \
    "$python" -W ignore -c "import cv2, detectron2.modeling, fvcore, pycocotools.mask, torch"
printf '\n=== %s is ready: Python %s\n\n' "$venv" "$("$python" -c 'import platform; print(platform.python_version())')"
