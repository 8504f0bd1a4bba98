# What the tools share; sourced by them, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '== %s\n' "$*"; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Bad command line: what is wrong, and where to read what is right.
usage_error() {
  printf 'error: %s\nTry: %s --help\n' "$*" "$0" >&2
  exit 2
}

# Prints the comment at the top of the calling script, which is its documentation.
show_help() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$0"; }

need_value() { [[ $# -ge 2 && -n $2 ]] || usage_error "option $1 needs a value"; }

need_number() { [[ $2 =~ ^[1-9][0-9]*$ ]] || usage_error "option $1 = $2: allowed is a whole number from 1"; }

# How many compilers may run at once: files that include LibTorch and are compiled together take up to 3 GiB.
default_jobs() {
  local cores memory limit
  cores=$(nproc)
  memory=$(awk '/^MemTotal:/ {printf "%d", $2 / 1048576}' /proc/meminfo)
  if [[ -r /sys/fs/cgroup/memory.max ]]; then
    limit=$(</sys/fs/cgroup/memory.max)
    if [[ $limit != max ]] && ((limit >> 30 < memory)); then memory=$((limit >> 30)); fi
  fi
  local by_memory=$((memory / 3))
  ((by_memory >= 1)) || by_memory=1
  echo $((cores < by_memory ? cores : by_memory))
}

# The system's python3 first: distributions put their torch there, and one found earlier in PATH often has none.
# shellcheck disable=SC2034  # used by the tools
if [[ -x /usr/bin/python3 ]]; then python=/usr/bin/python3; else python=python3; fi

# configure_and_build PRESET JOBS [TARGET...]
configure_and_build() {
  local preset=$1 jobs=$2
  shift 2
  say "configuring preset $preset"
  (cd "$root" && cmake --preset "$preset")
  say "building preset $preset with $jobs job(s)${*:+: $*}"
  (cd "$root" && cmake --build --preset "$preset" --parallel "$jobs" ${1:+--target "$@"})
}
