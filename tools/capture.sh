#!/bin/sh
# Record what a live machine maps and unmaps, as `emu replay` reads it.
#
#   capture.sh [-o NAME] [-d DEVICE]... [-b KB] [-w SECONDS] [-p few|all|none] PHASE=COMMAND...
#   capture.sh [-o NAME] [...] [-s SECONDS]
#   capture.sh -u
#
# Writes NAME.trace.gz, the text of tracefs, and NAME.json, how it was recorded and what the kernel counted. Each COMMAND
# is run by sh, one after the other, as a phase of that name. Without a phase, one called `run` is recorded until Ctrl-C,
# or for SECONDS. Needs root, tracefs and the events iommu:map and iommu:unmap; nothing else is needed, and nothing is
# left behind: it uses a tracing instance and probes of its own, and takes them away on every way out.
#
#   -o NAME     path of the result without its endings; default capture-TIME in the current folder
#   -d DEVICE   PCI device (0000:00:04.0) whose counters and domain type are noted; default all. The trace has the
#               mappings of all devices in any case; for comparing counters, leave -d away or have one device busy.
#   -b KB       buffer of each CPU; default an eighth of the memory for all of them, at most 65536 each
#   -w SECONDS  wait after each phase before the counters are read again; default 3, more than the longest flush timer
#   -p PROBES   few: flushes, timers, and whose a mapping is where there are several domains (default); all: also every
#               step of the queue and all returns; none: only the two events
#   -s SECONDS  length of the phase `run`
#   -u          undo what a capture left that was killed with SIGKILL
#
# EMU_CAPTURE_ROOT is put before /sys, /proc and /boot, for tests.
set -u

ROOT=${EMU_CAPTURE_ROOT:-}
GROUP=emu_capture
LARGEST_BUFFER_KB=65536
SMALLEST_BUFFER_KB=1024

name='' devices='' buffer_kb='' settle_s=3 probes=few seconds='' undo_only=''
tracefs='' instance='' probes_made='' probes_said='' phases_said='' trace_part='' json_part='' stopped=''

say() {
  printf 'capture.sh: %s\n' "$*" >&2
}

fail() {
  say "$*"
  exit 2
}

usage() {
  sed -n '2,/^set -u/s/^# \{0,1\}//p' "$0"
  exit "$1"
}

# JSON

quoted() {
  LC_ALL=C tr -c '\040-\176\n' '?' | sed 's/\\/\\\\/g; s/"/\\"/g; s/.*/"&"/'
}

string() {
  printf '%s\n' "$(printf '%s' "$1" | tr '\n\t' '  ')" | quoted
}

# Lines to the elements of a list.
strings() {
  quoted | paste -s -d , -
}

content() {
  [ -r "$1" ] && cat "$1" 2>/dev/null
}

# Tracing

find_tracefs() {
  for tracefs in "$ROOT/sys/kernel/tracing" "$ROOT/sys/kernel/debug/tracing"; do
    [ -d "$tracefs/events" ] && break
    tracefs=''
  done
  [ -n "$tracefs" ] || fail "no tracefs at $ROOT/sys/kernel/tracing; mount it: mount -t tracefs nodev /sys/kernel/tracing"
}

write() {
  { printf '%s\n' "$1" >"$2"; } 2>/dev/null
}

# Appending, since truncating kprobe_events would remove the probes of others too.
append() {
  { printf '%s\n' "$1" >>"$2"; } 2>/dev/null
}

mark() {
  append "$1" "$instance/trace_marker"
}

make_instance() {
  [ -d "$tracefs/events/iommu/map" ] || fail "this kernel has no event iommu:map; it needs an IOMMU and CONFIG_IOMMU_API"
  wanted="$tracefs/instances/emu-capture"
  [ ! -d "$wanted" ] || fail "$wanted exists: another capture is running, or one was killed; then run capture.sh -u"
  mkdir "$wanted" 2>/dev/null || fail "$wanted cannot be made; the kernel needs CONFIG_TRACING and tracefs instances"
  instance=$wanted
  write 0 "$instance/tracing_on" || fail "$instance/tracing_on cannot be written; is the kernel locked down?"
  write global "$instance/trace_clock" || fail "the clock 'global' cannot be chosen in $instance/trace_clock"
  write "$buffer_kb" "$instance/buffer_size_kb" || fail "no memory for buffers of $buffer_kb KB for each CPU; choose less with -b"
  for event in map unmap; do
    write 1 "$instance/events/iommu/$event/enable" || fail "the event iommu:$event cannot be switched on"
  done
  for event in attach_device_to_domain io_page_fault; do
    [ -e "$instance/events/iommu/$event/enable" ] && write 1 "$instance/events/iommu/$event/enable"
  done
}

# Level, kind (p: entry, r: return), name, symbol, arguments. The reader knows these names.
probe_table() {
  cat <<'TABLE'
few p fq_flush_timeout fq_flush_timeout
few r fq_flush_timeout_ret fq_flush_timeout
few p fq_flush_iotlb fq_flush_iotlb
few r fq_flush_iotlb_ret fq_flush_iotlb
few p fq_ring_free fq_ring_free
few p iommu_dma_init_fq iommu_dma_init_fq
few r iommu_dma_init_fq_ret iommu_dma_init_fq ret=$retval:s32
few p rpcit zpci_refresh_trans fn=$arg1:x64 addr=$arg2:x64 range=$arg3:x64
few p s390_flush_iotlb_all s390_iommu_flush_iotlb_all dom=$arg1:x64
few r s390_flush_iotlb_all_ret s390_iommu_flush_iotlb_all
few p s390_iotlb_sync s390_iommu_iotlb_sync dom=$arg1:x64 start=+0($arg2):x64 end=+8($arg2):x64
few p intel_flush_iotlb_all intel_flush_iotlb_all dom=$arg1:x64
few r intel_flush_iotlb_all_ret intel_flush_iotlb_all
few p intel_tlb_sync intel_iommu_tlb_sync dom=$arg1:x64 start=+0($arg2):x64 end=+8($arg2):x64
few p amd_flush_iotlb_all amd_iommu_flush_iotlb_all dom=$arg1:x64
few r amd_flush_iotlb_all_ret amd_iommu_flush_iotlb_all
few p amd_iotlb_sync amd_iommu_iotlb_sync dom=$arg1:x64 start=+0($arg2):x64 end=+8($arg2):x64
few p smmu_flush_iotlb_all arm_smmu_flush_iotlb_all dom=$arg1:x64
few r smmu_flush_iotlb_all_ret arm_smmu_flush_iotlb_all
few p smmu_iotlb_sync arm_smmu_iotlb_sync dom=$arg1:x64 start=+0($arg2):x64 end=+8($arg2):x64
few p viommu_flush_iotlb_all viommu_flush_iotlb_all dom=$arg1:x64
few r viommu_flush_iotlb_all_ret viommu_flush_iotlb_all
few p viommu_iotlb_sync viommu_iotlb_sync dom=$arg1:x64 start=+0($arg2):x64 end=+8($arg2):x64
tag p iommu_map iommu_map dom=$arg1:x64 iova=$arg2:x64
tag p iommu_map_nosync iommu_map_nosync dom=$arg1:x64 iova=$arg2:x64
tag p iommu_map_sg iommu_map_sg dom=$arg1:x64 iova=$arg2:x64
tag p iommu_unmap iommu_unmap dom=$arg1:x64 iova=$arg2:x64
tag p iommu_unmap_fast iommu_unmap_fast dom=$arg1:x64 iova=$arg2:x64
all p fq_ring_free_locked fq_ring_free_locked
all p free_iova_fast free_iova_fast pfn=$arg2:x64 pages=$arg3:u64
all p s390_iotlb_sync_map s390_iommu_iotlb_sync_map dom=$arg1:x64 iova=$arg2:x64 size=$arg3:u64
all r rpcit_ret zpci_refresh_trans ret=$retval:s32
all r s390_iotlb_sync_ret s390_iommu_iotlb_sync
all r intel_tlb_sync_ret intel_iommu_tlb_sync
all p qi_submit_sync qi_submit_sync
all r qi_submit_sync_ret qi_submit_sync
all p cache_tag_flush_all cache_tag_flush_all dom=$arg1:x64
TABLE
}

make_probes() {
  [ "$probes" != none ] || return 0
  if [ ! -e "$tracefs/kprobe_events" ]; then
    say "this kernel has no kprobe events (CONFIG_KPROBE_EVENTS): flushes and timers are not recorded"
    return 0
  fi
  levels=" few "
  [ "$(translated_groups | wc -l)" -gt 1 ] && levels=" few tag "
  [ "$probes" = all ] && levels=" few tag all "
  known=" $(awk '{ print $3 }' "$ROOT/proc/kallsyms" | grep -E '^(zpci|s390_iommu|intel|amd_iommu|arm_smmu|viommu|iommu|fq|free_iova|qi|cache_tag)_' | tr '\n' ' ') "
  missing=''
  table=$(probe_table)
  while read -r level kind probe symbol arguments; do
    case $levels in *" $level "*) ;; *) continue ;; esac
    case $known in
    *" $symbol "*) make_probe "$kind" "$probe" "$symbol" "$arguments" ;;
    *) [ "$kind" = r ] || missing="$missing $symbol" ;;
    esac
  done <<TABLE
$table
TABLE
  [ -z "$missing" ] || say "not in this kernel, or inlined, and so not recorded:$missing"
  [ -z "$probes_made" ] || write 1 "$instance/events/$GROUP/enable" || fail "the probes cannot be switched on"
}

make_probe() {
  definition="$1:$GROUP/$2 $3${4:+ $4}"
  if append "$definition" "$tracefs/kprobe_events"; then
    probes_made="$probes_made $2"
    probes_said="${probes_said}kprobe ok: $definition
"
  else
    probes_said="${probes_said}kprobe FAILED: $definition
"
    say "no probe can be set on $3 (see $tracefs/error_log); it is not recorded"
  fi
}

remove_instance() {
  [ -d "$1" ] || return 0
  write 0 "$1/tracing_on"
  [ ! -e "$1/events/$GROUP/enable" ] || write 0 "$1/events/$GROUP/enable"
  for _ in 1 2 3 4 5; do
    rmdir "$1" 2>/dev/null && return 0
    sleep 1
  done
  say "$1 cannot be removed: somebody has it open; later run capture.sh -u"
  return 1
}

remove_probes() {
  for probe in $1; do
    append "-:$GROUP/$probe" "$tracefs/kprobe_events" || say "the probe $GROUP/$probe cannot be removed; later run capture.sh -u"
  done
}

undo() {
  trap '' INT TERM HUP PIPE
  [ -z "$instance" ] || remove_instance "$instance"
  remove_probes "$probes_made"
  [ -z "$trace_part" ] || rm -f "$trace_part"
  [ -z "$json_part" ] || rm -f "$json_part"
}

undo_leftovers() {
  remove_instance "$tracefs/instances/emu-capture" || exit 2
  [ ! -r "$tracefs/kprobe_events" ] ||
    remove_probes "$(sed -n "s,^[pr][0-9]*:$GROUP/\([^ ]*\).*,\1,p" "$tracefs/kprobe_events" | tr '\n' ' ')"
}

# What the machine is

groups() {
  for group in "$ROOT"/sys/kernel/iommu_groups/*; do
    [ -d "$group/devices" ] || continue
    [ -z "$devices" ] || has_a_chosen_device "$group" || continue
    printf '%s\n' "$group"
  done
}

has_a_chosen_device() {
  for device in $devices; do
    [ -e "$1/devices/$device" ] && return 0
  done
  return 1
}

# Groups whose mappings the events tell of, whatever device was chosen.
translated_groups() {
  for group in "$ROOT"/sys/kernel/iommu_groups/*; do
    case $(content "$group/type") in DMA*) printf '%s\n' "$group" ;; esac
  done
}

domain_types() {
  groups | while read -r group; do content "$group/type"; done | grep -vxE 'identity|blocked|auto' | sort -u
}

groups_as_json() {
  groups | while read -r group; do
    printf '%s: {"type": %s, "devices": [%s]}\n' "$(string "${group##*/}")" "$(string "$(content "$group/type")")" \
      "$(for device in "$group"/devices/*; do printf '%s\n' "${device##*/}"; done | strings)"
  done | paste -s -d , -
}

online_cpus() {
  content "$ROOT/sys/devices/system/cpu/online" |
    awk -F, '{ for (i = 1; i <= NF; i++) { n = split($i, ends, "-"); cpus += n > 1 ? ends[2] - ends[1] + 1 : 1 } } END { print cpus + 0 }'
}

default_buffer_kb() {
  awk -v cpus="$(online_cpus)" -v least="$SMALLEST_BUFFER_KB" -v most="$LARGEST_BUFFER_KB" '
    $1 == "MemTotal:" { kb = int($2 / 8 / (cpus > 0 ? cpus : 1)) }
    END { print (kb < least ? least : kb > most ? most : kb) }' "$ROOT/proc/meminfo"
}

release() {
  awk '{ print $3 }' "$ROOT/proc/version"
}

hz() {
  {
    gzip -dc "$ROOT/proc/config.gz" 2>/dev/null || content "$ROOT/boot/config-$(release)" ||
      content "$ROOT/lib/modules/$(release)/config"
  } | sed -n 's/^CONFIG_HZ=\([0-9]*\)$/\1/p'
}

# s390: what the kernel counted for each device, until now.
counters() {
  printf '{"uptime_s": %s' "$(awk '{ print $1 + 0 }' "$ROOT/proc/uptime")"
  for statistics in "$ROOT"/sys/kernel/debug/pci/*/statistics; do
    [ -r "$statistics" ] || continue
    device=${statistics%/statistics}
    device=${device##*/}
    [ -z "$devices" ] || case " $devices " in *" $device "*) ;; *) continue ;; esac
    printf ', %s: {' "$(string "$device")"
    awk -F': *' '
      NF >= 2 {
        gsub(/^[ \t]+|[ \t]+$/, "", $1); gsub(/^[ \t]+|[ \t]+$/, "", $2)
        printf "%s\"%s\": %s", separator, $1, $2 ~ /^(0|[1-9][0-9]*)$/ ? $2 : "\"" $2 "\""
        separator = ", "
      }' "$statistics"
    printf '}'
  done
  printf '}'
}

check_counters() {
  for device in $devices; do
    [ -e "$ROOT/sys/bus/pci/devices/$device" ] || fail "-d $device: no such PCI device; see ls /sys/bus/pci/devices"
  done
  found=''
  for statistics in "$ROOT"/sys/kernel/debug/pci/*/statistics; do
    [ -r "$statistics" ] || continue
    ! grep -q disabled "$statistics" || say "no counters in $statistics; switch them on: echo 1 > $statistics"
    found=1
  done
  [ -z "$found" ] || return 0
  case $(uname -m) in
  s390x) say "no statistics in $ROOT/sys/kernel/debug/pci: the kernel's counters are not recorded; is debugfs mounted?" ;;
  esac
}

# Phases

snapshot() {
  mark "KCSNAP $1.$2 begin"
  taken=$(counters)
  mark "KCSNAP $1.$2 end"
}

run_phase() {
  phase=$1 command=$2
  say "phase $phase"
  snapshot "$phase" before
  before=$taken
  mark "KCMARK $phase.begin"
  if [ -n "$command" ]; then
    sh -c "$command"
    status=$?
  else
    wait_for_the_end
    status=0
  fi
  mark "KCMARK $phase.end"
  [ "$status" -eq 0 ] || say "phase $phase: its command ended with $status"
  snapshot "$phase" after
  after=$taken
  sleep "$settle_s"
  snapshot "$phase" settled
  phases_said="$phases_said${phases_said:+, }$(string "$phase"): {\"command\": $(string "$command"), \"exit_status\": $status,
  \"counters_before\": $before,
  \"counters_after\": $after,
  \"counters_settled\": $taken}"
}

# Until Ctrl-C, which here ends the phase and not the capture.
wait_for_the_end() {
  trap 'stopped=1' INT
  [ -n "$seconds" ] || say "recording; stop with Ctrl-C"
  passed=0
  while [ -z "$stopped" ] && { [ -z "$seconds" ] || [ "$passed" -lt "$seconds" ]; }; do
    sleep 1
    passed=$((passed + 1))
  done
  trap 'exit 130' INT
}

# Results

per_cpu() {
  for stats in "$instance"/per_cpu/cpu*/stats; do
    [ -r "$stats" ] && sed -n "s/^$1: *//p" "$stats"
  done | paste -s -d , -
}

profile() {
  [ -r "$tracefs/kprobe_profile" ] || return 0
  awk -v wanted=" $probes_made " '
    index(wanted, " " $1 " ") {
      printf "%s\"%s\": {\"hits\": %d, \"missed\": %d}", separator, $1, $2, $3
      separator = ", "
    }' "$tracefs/kprobe_profile"
}

write_description() {
  hz=$(hz)
  cat <<JSON
{"name": $(string "${name##*/}"),
"recorded_by": "tools/capture.sh",
"recorded_at": $(string "$(date -u +%Y-%m-%dT%H:%M:%SZ)"),
"kernel_version": $(string "$(content "$ROOT/proc/version")"),
"arch": $(string "$(uname -m)"),
"cmdline": $(string "$(content "$ROOT/proc/cmdline")"),
"vcpus": $(online_cpus),
"hz": ${hz:-null},
"domain_type": [$(domain_types | strings)],
"iommu_groups": {$(groups_as_json)},
"devices": [$(for device in $devices; do printf '%s\n' "$device"; done | strings)],
"trace_clock": $(string "$(content "$instance/trace_clock")"),
"buffer_kb_per_cpu": $buffer_kb,
"settle_s": $settle_s,
"lost_events": {"overrun_per_cpu": [$(per_cpu overrun)], "commit_overrun_per_cpu": [$(per_cpu 'commit overrun')],
  "dropped_per_cpu": [$(per_cpu 'dropped events')]},
"kprobes": [$(printf '%s' "$probes_said" | strings)],
"kprobe_profile": {$(profile)},
"counters_at_start": $at_start,
"phases": {$phases_said},
"dmesg_iommu": [$(dmesg 2>/dev/null | grep -iE 'iommu|DMAR|AMD-Vi' | strings)]}
JSON
}

warn_of_losses() {
  lost=$(per_cpu overrun | tr , '\n' | awk '{ lost += $1 } END { print lost + 0 }')
  [ "$lost" -eq 0 ] || say "$lost events were lost; give a larger buffer with -b, now $buffer_kb"
}

write_results() {
  write 0 "$instance/tracing_on"
  warn_of_losses
  trace_part=$name.trace.gz.part json_part=$name.json.part
  # shellcheck disable=SC2002 # the file has no size, which gzip would complain about
  cat "$instance/trace" | gzip -c >"$trace_part" || fail "$trace_part cannot be written"
  write_description >"$json_part" || fail "$json_part cannot be written"
  mv "$json_part" "$name.json" || fail "$name.json cannot be written"
  mv "$trace_part" "$name.trace.gz" || fail "$name.trace.gz cannot be written"
  trace_part='' json_part=''
}

# The command line

number() {
  case $2 in '' | *[!0-9]*) fail "$1 must be a whole number, not '$2'" ;; esac
}

while getopts o:d:b:w:p:s:uh option; do
  case $option in
  o) name=$OPTARG ;;
  d) devices="$devices $OPTARG" ;;
  b) number -b "$OPTARG" && buffer_kb=$OPTARG ;;
  w) number -w "$OPTARG" && settle_s=$OPTARG ;;
  p) probes=$OPTARG ;;
  s) number -s "$OPTARG" && seconds=$OPTARG ;;
  u) undo_only=1 ;;
  h) usage 0 ;;
  *) fail "see capture.sh -h" ;;
  esac
done
shift $((OPTIND - 1))

case $probes in few | all | none) ;; *) fail "-p must be few, all or none, not '$probes'" ;; esac
[ -z "$seconds" ] || [ $# -eq 0 ] || fail "-s is for recording without a command; leave it away, or the phases"
for argument; do
  case ${argument%%=*} in
  "$argument") fail "'$argument' is not PHASE=COMMAND; see capture.sh -h" ;;
  '' | *[!A-Za-z0-9._-]*) fail "'${argument%%=*}' cannot name a phase: letters, digits, '.', '_' and '-'" ;;
  esac
done
[ -n "$ROOT" ] || [ "$(id -u)" -eq 0 ] || fail "must be run as root: sudo $0 ..."
find_tracefs
if [ -n "$undo_only" ]; then
  undo_leftovers
  exit 0
fi

name=${name:-capture-$(date -u +%Y%m%dT%H%M%SZ)}
name=${name%.gz}
name=${name%.trace}
[ ! -e "$name.trace.gz" ] || fail "$name.trace.gz exists; choose another name with -o"
[ -w "$(dirname "$name")" ] || fail "$name: its folder is not there or cannot be written to"
check_counters
buffer_kb=${buffer_kb:-$(default_buffer_kb)}

trap undo EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP
make_instance
make_probes
at_start=$(counters)
write 1 "$instance/tracing_on" || fail "tracing cannot be switched on in $instance"
type=$(domain_types)
[ -z "$type" ] || [ "$(printf '%s\n' "$type" | wc -l)" -ne 1 ] || mark "KCTYPE $type"

if [ $# -eq 0 ]; then
  run_phase run ''
fi
for argument; do
  run_phase "${argument%%=*}" "${argument#*=}"
done
write_results
say "wrote $name.trace.gz and $name.json"
