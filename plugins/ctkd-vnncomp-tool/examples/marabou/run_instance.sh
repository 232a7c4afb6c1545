#!/bin/bash
# run_instance.sh v1 CATEGORY ONNX VNNLIB RESULTS TIMEOUT
set -e
[ "$1" = v1 ]
onnx=$3 vnnlib=$4 results=$5 timeout=$6
work=$(mktemp -d "$results.XXXXXX")
trap 'rm -rf "$work"' EXIT
Marabou "$onnx" "$vnnlib" --timeout "$timeout" --verbosity 0 --summary-file "$work/summary" > "$work/output" ||
    { tail -n 5 "$work/output"; exit 1; }
verdict=$(cut -d ' ' -f 1 "$work/summary" 2> /dev/null || true)
case $verdict in
unsat) echo unsat > "$results" ;;
sat)
    {
        echo sat
        echo "("
        sed -nE 's/^[[:space:]]*x([0-9]+) = (.*)$/(X_\1 \2)/p; s/^[[:space:]]*y([0-9]+) = (.*)$/(Y_\1 \2)/p' "$work/output"
        echo ")"
    } > "$results"
    ;;
TIMEOUT) echo timeout > "$results" ;;
UNKNOWN) echo unknown > "$results" ;;
*)
    echo "no verdict in Marabou's summary: $verdict"
    exit 1
    ;;
esac
