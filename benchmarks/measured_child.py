"""What a program costs that runs in a process of its own: wall and processor seconds, and its peak memory.

The peak is the kernel's VmHWM, sampled while the process lives: `ru_maxrss` of a child starts with the peak of its
parent.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

SAMPLE_SECONDS = 0.01
"""Between two looks at a child's memory."""


def run_child(module: str, *arguments: str | Path, stdout: int | None = None) -> tuple[dict[str, float], bytes]:
    """Run a Python module in a child: wall and processor seconds, peak resident and anonymous bytes; what it printed.

    Args:
        module: its name.
        arguments: of its command line.
        stdout: PIPE returns what it prints (less than a pipe holds); None lets it through.
    Raises:
        CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    start_s = time.perf_counter()
    with subprocess.Popen(command, stdout=stdout) as child:
        peak = anonymous = 0
        while True:
            pid, status, usage = os.wait4(child.pid, os.WNOHANG)
            if pid:
                break
            peak, anonymous = max(peak, _memory(child.pid, "VmHWM")), max(anonymous, _memory(child.pid, "RssAnon"))
            time.sleep(SAMPLE_SECONDS)
        seconds = time.perf_counter() - start_s
        child.returncode = os.waitstatus_to_exitcode(status)
        printed = child.stdout.read() if child.stdout else b""
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return {
        "seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": peak,  # of wait4's usage it would be this process's own, if that is larger
        "anonymous_bytes": anonymous,
    }, printed


def _memory(pid: int, name: str) -> int:
    """A process's VmHWM (its peak so far) or RssAnon (what no file stands behind), bytes; 0 once it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
