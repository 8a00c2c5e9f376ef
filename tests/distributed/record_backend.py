"""Train as one rank with every patch of the CPU backend counting its calls; run by test_backend_patches.py.

python record_backend.py RUN_FOLDER OUT.json [--resume]
"""

import dataclasses
import json
import sys
from pathlib import Path

from megatron_medx.parallel import cpu
from megatron_medx.training import worker

called = set()


def counting(patch: cpu.Patch) -> cpu.Patch:
    """The same patch; its replacement notes that it was used."""

    def count(function):
        def counted(*args, **kwargs):
            called.add(f"{patch.module}.{patch.name}")
            return function(*args, **kwargs)

        return counted

    if patch.wraps:
        return dataclasses.replace(patch, replacement=lambda old: count(patch.replacement(old)))
    if isinstance(patch.replacement, type):
        stand_in = type(patch.name, (patch.replacement,), {"__init__": count(patch.replacement.__init__)})
        return dataclasses.replace(patch, replacement=stand_in)
    return dataclasses.replace(patch, replacement=count(patch.replacement))


if __name__ == "__main__":
    cpu.PATCHES = tuple(counting(patch) for patch in cpu.PATCHES)
    folder, out, *options = sys.argv[1:]
    code = worker.main([folder, *options])
    Path(out).write_text(json.dumps(sorted(called)))
    sys.exit(code)
