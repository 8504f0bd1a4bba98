#!/usr/bin/env bash
# Tests tools/setup on machines made of stubs: only what is in $machine can be called. Also how the tools take nonsense.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
machine=$work/bin
calls=$work/calls
failures=0

fresh_machine() {
  rm -rf "$machine" "$calls"
  mkdir "$machine"
  : >"$calls"
  local program
  for program in bash env cat dirname sed awk grep nproc true; do ln -s "$(type -P "$program")" "$machine/$program"; done
  stub sleep 'true'
  stub sudo 'exec "$@"'
}

stub() { printf '#!/usr/bin/env bash\n%s\n' "$2" >"$machine/$1" && chmod +x "$machine/$1"; }

# A Debian machine on which everything but the named packages is installed.
debian_without() {
  fresh_machine
  stub dpkg-query "for argument in \"\$@\"; do
    case \" $* --show \" in *\" \$argument \"*) continue ;; esac
    [[ \$argument == --* ]] || echo \"\$argument installed\"
  done"
  stub apt-get "echo \"apt-get \$*\" >>'$calls'"
}

run() {
  status=0
  output=$(env -u RONDO_SKIP_SETUP PATH="$machine" "$@" 2>&1) || status=$?
}

check() {
  local what=$1
  shift
  if ! "$@"; then
    printf 'FAILED: %s\n  status %s, output:\n%s\n  calls:\n%s\n' "$what" "$status" "$output" "$(<"$calls")" >&2
    failures=$((failures + 1))
  fi
}
says() { [[ $output == *"$1"* ]]; }
called() { grep -q -e "$1" "$calls"; }
calls_are() { [[ $(grep -c -e "$1" "$calls") == "$2" ]]; }

debian_without nothing
run "$root/tools/setup"
check "nothing missing: succeeds" [ "$status" = 0 ]
check "nothing missing: silent" [ -z "$output" ]
check "nothing missing: installs nothing" [ ! -s "$calls" ]

debian_without libasio-dev libopenblas0-pthread
run "$root/tools/setup"
check "missing packages: succeeds" [ "$status" = 0 ]
check "missing packages: says which and why" says "libasio-dev            coroutines"
check "missing packages: installs exactly these" called "install.* libopenblas0-pthread libasio-dev$"
check "missing packages: says so before it installs" [ "${output%%apt-get install*}" != "${output%%coroutines*}" ]
check "missing packages: updates the lists once" calls_are " update " 1

debian_without catch2
stub apt-get "echo \"apt-get \$*\" >>'$calls'; [[ \" \$* \" != *\" update \"* ]]"
run "$root/tools/setup"
check "no network: tries the update twice" calls_are " update " 2
check "no network: still installs from the lists that are here" called "install.* catch2$"

debian_without catch2
stub apt-get "echo \"apt-get \$*\" >>'$calls'; [[ \" \$* \" != *\" install \"* ]]"
run "$root/tools/setup"
check "install fails: fails" [ "$status" = 1 ]
check "install fails: names the package" says "could not install: catch2"

debian_without clang
run "$root/tools/setup" clang
check "further package: installs it" called "install.* clang$"

fresh_machine
run "$root/tools/setup"
check "not Debian: exits with 2" [ "$status" = 2 ]
check "not Debian: lists what is needed" says "libtorch-dev"
check "not Debian: says how to go on" says "CMAKE_PREFIX_PATH"
run env RONDO_SKIP_SETUP=1 "$root/tools/setup"
check "RONDO_SKIP_SETUP=1: succeeds" [ "$status" = 0 ]

for tool in setup test quickstart bench; do
  run "$root/tools/$tool" --help
  check "$tool --help: succeeds" [ "$status" = 0 ]
  check "$tool --help: shows the usage" says "usage: tools/$tool"
  run "$root/tools/$tool" --no-such-option
  check "$tool with an unknown option: exits with 2" [ "$status" = 2 ]
  check "$tool with an unknown option: names it" says "--no-such-option"
done
run "$root/tools/test" --jobs 0
check "--jobs 0: says what is allowed" says "--jobs = 0: allowed is"
run "$root/tools/test" --preset fast
check "--preset fast: says what is allowed" says "--preset = fast: allowed is release"

((failures == 0)) || exit 1
echo "tools: all checks passed"
