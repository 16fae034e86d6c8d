#!/usr/bin/env bash
# Print the command that the README marks with <!-- command: NAME -->.
# Usage: tools/readme_command.sh run|test
set -euo pipefail
readme="$(dirname "${BASH_SOURCE[0]}")/../README.md"

command="$(awk -v mark="<!-- command: ${1:?name a command: run or test} -->" '
  $0 == mark { marked = 1; next }
  marked && /^```/ { if (inside) exit; inside = 1; next }
  inside { print }
' "$readme")"
if [[ -z "$command" ]]; then
  echo "tools/readme_command.sh: README.md has no command marked $1" >&2
  exit 2
fi
printf '%s\n' "$command"
