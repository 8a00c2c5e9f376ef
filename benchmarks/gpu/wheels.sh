#!/usr/bin/env bash
# Collect the wheels that training needs and a machine with torch, transformers and Transformer Engine may lack: some 6 MB.
#   wheels.sh OUT
# For Python 3.12 on x86-64. Transformer Engine, Megatron-Core and DALI are not among them: they are large, and for
# torch Transformer Engine has to be built. On the machine: python3 -m pip install --no-index --no-deps OUT/*.whl
set -euo pipefail
out=$(mkdir -p "$1" && cd "$1" && pwd)
here=$(cd "$(dirname "$0")/../.." && pwd)
for name in pydicom nibabel; do
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    -d "$out" "$(grep -E "^$name==" "$here/constraints.txt")"
done
ls -la "$out"
