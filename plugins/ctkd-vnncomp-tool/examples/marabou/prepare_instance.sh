#!/bin/bash
# Nothing to convert; only says early that the program is missing.
set -e
[ "$1" = v1 ]
command -v Marabou > /dev/null || { echo "Marabou is not on PATH"; exit 1; }
