"""Hugging Face <-> Megatron from a checkout: `python tools/convert.py to-hf CKPT OUT` is `medx convert to-hf CKPT OUT`.

Needs no installation of the package, no GPU and no process group; see `python tools/convert.py --help`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from megatron_medx.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
