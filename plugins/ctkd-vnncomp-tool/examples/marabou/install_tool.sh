#!/bin/bash
# Marabou as a tool of the competition: the program of the wheel, on PATH.
set -e
[ "$1" = v1 ]
pip install maraboupy==2.0.0
