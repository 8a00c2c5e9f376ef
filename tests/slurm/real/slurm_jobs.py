"""Submitted jobs, asked by polling."""

import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TWO_BY_TWO = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1", "--time=10")
"""Options of sbatch: two nodes of two tasks, a make-believe GPU each."""

PATIENCE_S = 420
"""How long a job may take to do what a test waits for: at a load of 17 the imports of four ranks took 140 s."""

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY", "DEADLINE")
"""States of jobs that nothing more comes of."""


@dataclass(frozen=True, slots=True)
class Job:
    """A submitted job.

    Args:
        number: its id.
        log: what it and its tasks say, all starts of it.
        environment: of the shell that submitted it.
    """

    number: str
    log: Path
    environment: dict[str, str]

    def facts(self) -> dict[str, str]:
        """What `scontrol show job` says: JobState, ExitCode, NodeList, Restarts, ..."""
        return dict(re.findall(r"(\w+)=(\S*)", self.slurm("scontrol", "--oneliner", "show", "job", self.number)))

    def said(self) -> str:
        """Its log."""
        return self.log.read_text() if self.log.exists() else ""

    def wait_until(self, condition: Callable[[dict[str, str]], bool], what: str) -> dict[str, str]:
        """Poll until the condition holds for the job's facts, which are returned.

        Raises:
            AssertionError: the job is over before, or PATIENCE_S have passed; with its log.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not condition(facts := self.facts()):
            where = f"job {self.number}, {facts['JobState']}, {facts['ExitCode']}"
            assert not self.is_over(facts), f"{where}: over before {what}; its log:\n{self.said()}"
            assert time.monotonic() < deadline, f"{where}: {PATIENCE_S} s without {what}; its log:\n{self.said()}"
            time.sleep(0.1)
        return facts

    @staticmethod
    def is_over(facts: dict[str, str]) -> bool:
        """Whether nothing more comes of a job with these facts."""
        return facts["JobState"] in OVER

    def ended(self) -> dict[str, str]:
        """Its facts when it is over."""
        return self.wait_until(self.is_over, "its end")

    def succeeded(self) -> dict[str, str]:
        """The same of a job that must succeed."""
        facts = self.ended()
        assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), f"{facts}\n{self.said()}"
        return facts

    def slurm(self, *command: str) -> str:
        """What a command of Slurm prints, which must succeed."""
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout
