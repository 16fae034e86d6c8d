#!/usr/bin/env bash
# Try the README's two commands as a new user would: in a new clone of the committed state, with an empty home and empty
# caches. Prints how long each took; fails if one fails or leaves a process or a shared-memory segment behind.
# Usage: tools/fresh_install.sh
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT

git clone -q "$repository" "$place/emu"
mkdir "$place/home"
export HOME="$place/home"
unset XDG_CACHE_HOME XDG_CONFIG_HOME EMU_CACHE_DIR PYTHONPATH VIRTUAL_ENV

processes_left() {
  local process
  for process in /proc/[0-9]*; do
    if [[ "$(readlink "$process/cwd" 2>/dev/null)" == "$place"/* ]]; then
      echo "${process#/proc/}: $(tr '\0' ' ' 2>/dev/null <"$process/cmdline")"
    fi
  done
}

# Segments carry their owner's pid in their name; those of living processes are not ours to judge.
segments_left() {
  local segment owner
  for segment in /dev/shm/emu-[0-9]*-*; do
    owner="${segment#/dev/shm/emu-}"
    owner="${owner%%-*}"
    if [[ -e "$segment" && ! -d "/proc/$owner" ]] && ! grep -qxF "$segment" <<<"$segments_before"; then
      echo "$segment"
    fi
  done
}

segments_before="$(ls -d /dev/shm/emu-* 2>/dev/null || true)"
for name in run test; do
  command="$("$place/emu/tools/readme_command.sh" "$name")"
  echo "== $name: $command"
  started=$SECONDS
  (cd "$place/emu" && bash -c "$command")
  echo "== $name took $((SECONDS - started)) s"
done

left="$(processes_left)$(segments_left)"
if [[ -n "$left" ]]; then
  echo "left behind: $left" >&2
  exit 1
fi
echo "== nothing is left behind"
