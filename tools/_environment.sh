# Sourced by quickstart.sh, run_tests.sh and .ci/run: finds Python and makes the
# virtual environment. Not a program of its own.
# shellcheck shell=bash
#
# MMWSSS_VENV=DIR   use this environment (default: .venv in the repository). One that
#                   was not made by these scripts is used as it is.
# MMWSSS_PYTHON=P   make the environment with this interpreter.
# MMWSSS_LOCK=0     take the newest versions, not those of requirements/*.txt that were
#                   tested; always so with Python 3.10, which they are not for.

# Prints the first interpreter that really starts, is new enough and can make
# environments. A name on the PATH alone proves nothing: pyenv has shims for versions
# that are not installed, and Debian splits venv from python3.
find_python() {
  local candidate check
  check='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))'
  for candidate in "${MMWSSS_PYTHON:-}" python3.12 python3.11 python3.10 python3.13 \
    python3 python; do
    if [[ -n "$candidate" ]] && "$candidate" -c "$check" >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return 0
    fi
  done
  echo "error: no Python 3.10 or newer with the venv module was found; install one" \
    "(Debian, Ubuntu: apt install python3-venv) or name it in MMWSSS_PYTHON" >&2
  return 1
}

# Prints the file with the tested versions of these extras and their hashes, or nothing.
find_lock() {
  local root="$1" extras="$2" name=quickstart
  [[ "$extras" == *tests* ]] && name=tests
  [[ "${MMWSSS_LOCK:-1}" == 0 ]] && return 0
  "$VENV_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || return 0
  printf '%s\n' "$root/requirements/$name.txt"
}

# install_package ROOT EXTRAS: into the environment, with all that it needs. Where there
# is another way to try, it says so in INSTALL_ADVICE.
install_package() {
  local root="$1" extras="$2" lock
  local pip=("$VENV_PYTHON" -m pip install --disable-pip-version-check)
  lock="$(find_lock "$root" "$extras")"
  if [[ -z "$lock" ]]; then
    "${pip[@]}" --editable "${root}[$extras]"
    return
  fi
  INSTALL_ADVICE=', or with MMWSSS_LOCK=0 for the newest versions of everything'
  "${pip[@]}" --require-hashes --requirement "$lock" &&
    "${pip[@]}" --no-deps --editable "$root"
}

# make_environment ROOT EXTRAS: after it, VENV_PYTHON is the environment's interpreter
# with the package and its extras (for example "onedl,tests") installed.
make_environment() {
  local root="$1" extras="$2"
  local venv="${MMWSSS_VENV:-$root/.venv}"
  local stamp="$venv/mmwsss-environment" source have="" python
  VENV_PYTHON="$venv/bin/python"
  if [[ -x "$VENV_PYTHON" && ! -e "$stamp" && -n "${MMWSSS_VENV:-}" ]]; then
    export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
    return 0
  fi
  source="$root ${MMWSSS_LOCK:-1} $(cat "$root"/{setup.py,requirements/*.txt} | cksum)"
  if [[ -x "$VENV_PYTHON" && -e "$stamp" ]]; then
    have="$(cat "$stamp")"
  fi
  # "onedl" is satisfied by "onedl,tests" too.
  if [[ "$have" == "$extras"[\ ,]*"$source" ]]; then
    return 0
  fi
  if [[ ! -x "$VENV_PYTHON" ]] || ! "$VENV_PYTHON" -m pip --version >/dev/null 2>&1; then
    python="$(find_python)" || return 1
    echo "Making the environment $venv with $("$python" --version)"
    mkdir -p "$venv" || return 1
    echo unfinished >"$stamp" || return 1
    "$python" -m venv "$venv" || return 1
  fi
  echo unfinished >"$stamp" || return 1
  echo "Installing mmwsss[$extras] and what it needs (some minutes the first time)"
  INSTALL_ADVICE=''
  install_package "$root" "$extras" || {
    echo "error: pip could not install mmwsss[$extras]; its messages are above, run" \
      "the same command again to go on$INSTALL_ADVICE" >&2
    return 1
  }
  printf '%s %s\n' "$extras" "$source" >"$stamp"
}
