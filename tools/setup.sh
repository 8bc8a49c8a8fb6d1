#!/usr/bin/env bash
# Fills .venv in the repository root with the versions of requirements.txt.
#
#     bash tools/setup.sh            everything (`make setup`)
#     bash tools/setup.sh linter     ruff alone (`make lint`)
#
# A .venv that is there is kept and completed. Variables that change what goes in:
#
#     PINS             pins that take the place of those in requirements.txt, such as
#                      'torch==2.11.0'; .venv remembers them
#     FORKS            1: the forks onedl-mmcv, onedl-mmengine and onedl-mmdetection in
#                      place of mmcv, mmengine and mmdet; .venv remembers it
#     MMCV_FIND_LINKS  a page of ready mmcv wheels, instead of building one
#     MAX_JOBS         compilers at once; all cores if not given
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=.venv/bin/python
LOG=.venv/setup.log

# mmcv 2.1.0's setup.py fails on Python 3.13; the pinned NumPy wants 3.11.
FITS='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'

die() {
  echo "setup: $*" >&2
  exit 1
}

find_python() {
  local candidate
  for candidate in python3 python3.12 python3.11; do
    if "$candidate" -c "$FITS" 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  die 'found no Python 3.11 or 3.12, please install one (Debian and Ubuntu:' \
    'apt-get install python3 python3-venv python3-dev).'
}

make_venv() {
  local base
  if [[ ! -e $PYTHON ]]; then
    base=$(find_python)
    "$base" -c 'import ensurepip, venv' 2>/dev/null ||
      die "$base has no venv module, please install it (Debian and Ubuntu:" \
        'apt-get install python3-venv).'
    echo "Making .venv with $("$base" --version)"
    "$base" -m venv .venv
  fi
  "$PYTHON" -c "$FITS" ||
    die "the Python in .venv is not 3.11 or 3.12, please remove the folder .venv."
  # A set-up that was stopped here left a .venv without pip, and so does uv.
  "$PYTHON" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m ensurepip >/dev/null
}

# What mmcv's build needs and pip cannot bring. A ready wheel needs none of it.
check_build_tools() {
  local include
  [[ -z ${MMCV_FIND_LINKS:-} ]] || return 0
  command -v "${CXX:-c++}" >/dev/null ||
    die 'mmcv is built from source and there is no C++ compiler, please install one' \
      '(Debian and Ubuntu: apt-get install g++).'
  include=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  [[ -e $include/Python.h ]] ||
    die "mmcv is built from source and $include/Python.h is missing, please install" \
      "Python's headers (Debian and Ubuntu: apt-get install python3-dev)."
}

# requirements.txt without comments, and mmcv, whose pin is one: pip cannot install it
# with the others. With FORKS, each fork stands in the place of its original.
requirements() {
  local forks=''
  [[ -z ${FORKS:-} ]] ||
    forks=$(sed -nE 's/^# ([a-z]+) -> ([^ ]+)$/s:^\1==.*:\2:/p' requirements.txt)
  sed -n -e '/^[a-z]/p' -e 's/^# \(mmcv==\)/\1/p' requirements.txt | sed "$forks"
}

# The pinned requirements, one a line; PINS before requirements.txt.
pins() {
  local line pin
  for pin in ${PINS:-}; do
    requirements | grep "^${pin%%[=<>!~]*}==" >/dev/null ||
      die "PINS names '$pin', which requirements.txt does not pin."
  done
  while read -r line; do
    for pin in ${PINS:-}; do
      [[ ${pin%%[=<>!~]*} != "${line%%==*}" ]] || line=$pin
    done
    echo "$line"
  done < <(requirements)
}

# The pin of a package, or of its fork (mmdet's is onedl-mmdetection).
pin() {
  pins | grep -E "^(onedl-)?$1[a-z]*[=<>!~]"
}

# The forks fill the same folders as their originals.
check_no_mixture() {
  local others='onedl-mm'
  [[ -z ${FORKS:-} ]] || others='(mmcv|mmengine|mmdet)=='
  # No grep -q: it would leave early and make pip fail on the closed pipe.
  if "$PYTHON" -m pip list --format=freeze 2>/dev/null | grep -E "^$others" >/dev/null
  then
    die 'the forks and their originals cannot be in one .venv, please remove the' \
      'folder .venv to change from one to the other.'
  fi
}

# The newest line of pip's or ninja's output that tells how far it is.
progress() {
  local shown='\[[0-9]+/[0-9]+\]|(Collecting|Downloading|Building wheel for) [^ ]+'
  grep -oE "$shown|Installing collected packages" "$LOG" | tail -n 1 || true
}

# with_progress TITLE COMMAND...: runs the command into the log, says every 15 s that
# it is alive, shows the end of the log if it fails. The command stays in the
# foreground, so that Ctrl-C stops the compilers too.
with_progress() {
  local title=$1 start=$SECONDS status=0 reporter
  shift
  echo "$title"
  : >"$LOG"
  # The loop ends with this script ($$), however that ends.
  while sleep "${PROGRESS_SECONDS:-15}" >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
    printf '  %d:%02d %s\n' $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)) \
      "$(progress)"
  done &
  reporter=$!
  "$@" >>"$LOG" 2>&1 || status=$?
  kill "$reporter" 2>/dev/null || true
  wait "$reporter" 2>/dev/null || true
  if ((status)); then
    tail -n 30 "$LOG" >&2
    die "this step failed: '$title'; the end of its log is above, all of it in $LOG," \
      'and the next run goes on from here.'
  fi
}

pip_install() {
  "$PYTHON" -m pip install --no-input --disable-pip-version-check \
    --progress-bar off "$@"
}

install_linter() {
  with_progress 'Installing ruff' pip_install "$(pin ruff)"
}

# All but mmcv (needs PyTorch there) and OpenCV's contrib build (comes last).
install_requirements() {
  local wanted
  mapfile -t wanted < <(pins | grep -vE '^((onedl-)?mmcv|opencv-contrib)')
  with_progress "Installing $(pin torch), $(pin mmdet) and what they need" \
    pip_install "${wanted[@]}"
}

contrib_is_cv2() {
  "$PYTHON" -c 'import cv2; cv2.ximgproc.segmentation' 2>/dev/null
}

# Both OpenCV packages write the folder cv2, and the last one stays. The headless
# contrib build also does without libGL, which bare machines lack.
install_opencv_contrib() {
  local contrib
  contrib=$(pin opencv-contrib-python-headless)
  with_progress "Installing $contrib" pip_install --no-deps "$contrib"
  contrib_is_cv2 || with_progress "Putting $contrib in front" \
    pip_install --no-deps --force-reinstall "$contrib"
  contrib_is_cv2 ||
    die "$contrib is installed but 'import cv2' has no ximgproc.segmentation, please" \
      'remove the folder .venv and run again.'
}

# pip keeps a wheel that it built by mmcv's version alone, so one that was built for
# another PyTorch, or without CUDA, can come back: ask the operators themselves.
mmcv_works() {
  "$PYTHON" - >>"$LOG" 2>&1 <<'PY'
import sys
import torch
from mmcv.ops import get_compiling_cuda_version, nms

boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 7.0]])
_, kept = nms(boxes, torch.tensor([0.9, 0.8]), 0.5)
print('mmcv built with CUDA', get_compiling_cuda_version())
lacks_cuda = get_compiling_cuda_version() == 'not available'
sys.exit(kept.tolist() != [0] or (torch.cuda.is_available() and lacks_cuda))
PY
}

check_nvcc() {
  "$PYTHON" -c '
import sys, torch
from torch.utils.cpp_extension import CUDA_HOME
sys.exit(torch.cuda.is_available() and CUDA_HOME is None)' 2>/dev/null ||
    die 'PyTorch sees a GPU and there is no nvcc to build mmcv for it, please install' \
      "the CUDA toolkit of PyTorch's version or point CUDA_HOME at it, or give" \
      'MMCV_FIND_LINKS, or hide the GPU with CUDA_VISIBLE_DEVICES= for CPU operators.'
}

install_mmcv() {
  local mmcv source title
  mmcv=$(pin mmcv)
  # --no-deps: the rest is there, and opencv-python must not come back on top.
  source=(--no-deps --no-build-isolation -v "$mmcv")
  if [[ -n ${MMCV_FIND_LINKS:-} ]]; then
    # Without a fitting wheel there, pip would take the source archive of the index.
    source+=(--find-links "$MMCV_FIND_LINKS" --only-binary "${mmcv%%[=<>!~]*}")
    title="Installing $mmcv from $MMCV_FIND_LINKS"
  else
    check_nvcc
    export MAX_JOBS=${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)}
    title="Building $mmcv for this PyTorch: about 7 minutes on 2 cores, here $MAX_JOBS"
    title+=" at once; much longer with CUDA, seconds if pip has kept a build"
  fi
  # No grep -q: it would leave early and make pip fail on the closed pipe.
  if "$PYTHON" -m pip list --format=freeze 2>>"$LOG" | grep -Fx "$mmcv" >/dev/null &&
    mmcv_works; then
    return
  fi
  with_progress "$title" pip_install "${source[@]}"
  mmcv_works || with_progress "That build does not fit this PyTorch. $title" \
    pip_install --force-reinstall --no-cache-dir "${source[@]}"
  mmcv_works || {
    tail -n 5 "$LOG" >&2
    die "the operators of $mmcv do not run with this PyTorch (the reason is above)," \
      'please give PINS and MMCV_FIND_LINKS that belong together.'
  }
}

install_package() {
  with_progress 'Installing mmdet_ohem from this folder' \
    pip_install --no-deps --no-build-isolation --editable .
}

report() {
  "$PYTHON" -c '
import cv2, mmcv, mmdet, torch
print(f"Ready: PyTorch {torch.__version__}, mmcv {mmcv.__version__},",
      f"MMDetection {mmdet.__version__}, OpenCV {cv2.__version__} with contrib")'
}

main() {
  make_venv
  PINS=${PINS-$(cat .venv/pins 2>/dev/null || true)}
  FORKS=${FORKS-$(cat .venv/forks 2>/dev/null || true)}
  pins >/dev/null
  if [[ ${1:-} == linter ]]; then
    install_linter
    return
  fi
  check_build_tools
  check_no_mixture
  install_requirements
  install_opencv_contrib
  install_mmcv
  install_package
  # Remembered once they work; PINS= in a later call goes back to requirements.txt.
  echo "$PINS" >.venv/pins
  echo "$FORKS" >.venv/forks
  report
}

# Sourced, it only defines the functions (tests/test_setup.py).
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
  main "$@"
fi
