"""What the command line does when nobody reads its answer."""

import os
import subprocess
import sys
from pathlib import Path


def test_a_reader_that_has_gone_ends_the_command_without_a_traceback():
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "megatron_medx.cli", "recipes"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2], check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
