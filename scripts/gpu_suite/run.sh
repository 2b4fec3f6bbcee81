#!/usr/bin/env bash
# Runs on a machine with a GPU what build.sh has put beside this script, and writes one report.
set -uo pipefail

help="run.sh [--out FOLDER] [--seconds N] [PART...]

Parts, in this order unless named:
  doctor      the driver, the GPU, the kernels that it takes
  verify      every op against the CPU reference
  tests       the unit tests of the ops on the GPU
  cross       the emulator against the GPU, bit by bit; records the GPU's vectors
  sanitizer   compute-sanitizer's four tools, each first on a fault planted for it
  bench       every op beside its floor and cuBLASLt, in turn with the peers of benches/peers
  report      report.md and report.svg from what has been measured (always last)

--out FOLDER   where logs, JSON and the report go [default: results]
--seconds N    what one command may take [default: 300]
Exit status: 0 if every part passed, 1 otherwise."

here=$(cd "$(dirname "$0")" && pwd)
out=results seconds=300 parts=()
while [ $# -gt 0 ]; do
    case $1 in
        --out) out=${2:?--out needs a folder}; shift ;;
        --seconds) seconds=${2:?--seconds needs a number}; shift ;;
        --help | -h) echo "$help"; exit 0 ;;
        doctor | verify | tests | cross | sanitizer | bench | report) parts+=("$1") ;;
        *) echo "unknown: $1"; echo "$help"; exit 2 ;;
    esac
    shift
done
[ ${#parts[@]} -gt 0 ] || parts=(doctor verify tests cross sanitizer bench report)
mkdir -p "$out"
out=$(cd "$out" && pwd)
: >"$out/summary.tsv"
failed=0

# step NAME WANTED COMMAND...: runs a command with its log, and notes how it ended. WANTED is the exit status that means success.
step() {
    local name=$1 wanted=$2 start=$SECONDS status
    shift 2
    echo "== $name: $*"
    timeout "$seconds" "$@" >"$out/$name.log" 2>&1
    status=$?
    local word=passed
    [ "$status" = "$wanted" ] || { word=FAILED; failed=1; tail -n 15 "$out/$name.log"; }
    printf '%s\t%s\t%s\t%s\n' "$name" "$word" "$status" "$((SECONDS - start))" | tee -a "$out/summary.tsv"
}

graftwork=$here/bin/graftwork
has() { command -v "$1" >/dev/null 2>&1; }

for part in "${parts[@]}"; do
    case $part in
        doctor)
            step doctor 0 "$graftwork" doctor --device cuda --json "$out/doctor.json"
            step nvidia-smi 0 nvidia-smi
            ;;
        verify) step verify 0 "$graftwork" verify --device cuda --json "$out/verify.json" ;;
        tests) step tests 0 "$here/bin/unit_tests" --ignored on_cuda ;;
        cross) step cross 0 "$here/bin/cross_check" --record "$out/golden.json" ;;
        sanitizer)
            if ! has compute-sanitizer; then
                printf 'sanitizer\tFAILED\tabsent\t0\n' | tee -a "$out/summary.tsv"
                failed=1
                continue
            fi
            for tool in memcheck racecheck initcheck synccheck; do
                check=(compute-sanitizer --tool "$tool" --error-exitcode 99)
                step "planted-$tool" 99 "${check[@]}" "$here/bin/cross_check" --plant "$tool"
                step "sanitizer-$tool" 0 "${check[@]}" "$graftwork" verify --device cuda --quick
            done
            ;;
        bench)
            # Ours, theirs, ours, theirs: what changes from minute to minute meets both.
            for round in 1 2 3; do
                step "bench-$round" 0 "$graftwork" bench --device cuda --json "$out/bench-$round.json" --plot "$out/bench-$round.svg"
                for peer in linear sparse graph gate; do
                    step "peer-$peer-$round" 0 python3 "$here/peers/$peer.py" --json "$out/peer-$peer-$round.json"
                done
            done
            ;;
    esac
done
step report 0 python3 "$here/report.py" "$out"
exit $failed
