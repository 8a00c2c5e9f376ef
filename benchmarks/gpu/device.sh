#!/usr/bin/env bash
# One call on a machine with a GPU and no network: install what was brought, once, then measure. See session.md.
#   device.sh PARTS SECTIONS MINUTES
# PARTS holds the wheels in parts with their install.sh, `small` (wheels.sh) and `source` (data.py). Results
# and logs of this and earlier calls lie in PARTS/work, and in $OUT where that is set.
set -uo pipefail
parts=$1 sections=$2 minutes=$3
if [ ! -d /tmp/site ]; then
  (cd "$parts" && bash install.sh) || exit 1
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site \
    "$parts"/small/*.whl || exit 1
fi
nvidia=$(python3 -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent.parent / "nvidia")')
export PYTHONPATH=$PWD:/tmp/site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
export LD_LIBRARY_PATH=$nvidia/nccl/lib:$nvidia/cudnn/lib:$nvidia/cu13/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
python3 -m benchmarks.gpu --sections "$sections" --minutes "$minutes" \
  --source "$parts/source" --work "$parts/work" --out "$parts/work/results.json"
code=$?
if [ -n "${OUT:-}" ]; then
  cp "$parts/work/results.json" "$OUT/"
  tar -C "$parts/work" -czf "$OUT/logs.tar.gz" --exclude=data --exclude=tensorboard --exclude='*.gz' \
    --exclude=checkpoints . || true
fi
exit $code
