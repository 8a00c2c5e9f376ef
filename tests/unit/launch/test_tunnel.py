"""The courier's errands as the package sees them: answers, failures on the way, a courier that hangs or dies."""

import sys

import pytest

from megatron_medx.errors import ConfigError
from megatron_medx.launch import tunnel as tunnels
from megatron_medx.launch.clusters import Cluster
from megatron_medx.launch.tunnel import ADVICE, Done, NoAnswer, Tunnel

COURIER = f"""#!{sys.executable}
import json, os, sys, time
for line in sys.stdin:
    asked = json.loads(line)
    {{}}
"""


@pytest.fixture
def tunnel(tmp_path):
    """Function (what the courier does with `asked`, host) -> a Tunnel."""

    def make(does, host="login"):
        python = tmp_path / ".venv-launch" / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(COURIER.format(does))
        python.chmod(0o755)
        return Tunnel(tmp_path, Cluster("ours", host, "me", "/shared"))

    return make


def answers(text):
    return f"print(json.dumps({text}), flush=True)"


def test_a_script_is_run_by_a_login_shell(tunnel):
    with tunnel(answers("{'answer': {'code': 3, 'out': asked['command'], 'err': sys.argv[-1]}}")) as way:
        done = way.run("echo 'a'")
    assert done == Done(3, "bash --login -c 'echo '\"'\"'a'\"'\"''", '{"host": "login", "user": "me"}')


def test_a_commit_is_packed_here_and_put_there(tunnel, tmp_path):
    record = tmp_path / "record"
    with tunnel(f"open({str(record)!r}, 'a').write(line); {answers({'answer': '/packed'})}") as way:
        way.put_commit(tmp_path, "abc", "/shared/abc.tar.gz")
    package, put = record.read_text().splitlines()
    assert '"errand": "package"' in package and '"sha": "abc"' in package
    assert '"source": "/packed"' in put and '"target": "/shared/abc.tar.gz"' in put


@pytest.mark.parametrize("kind", ADVICE)
def test_what_fails_on_the_way_has_three_parts(tunnel, kind):
    with tunnel(answers({"failed": kind, "why": "so it is"})) as way, pytest.raises(NoAnswer) as raised:
        way.run("true")
    assert raised.value.found == f"me@login: {kind}: so it is"
    assert "{" not in raised.value.do + raised.value.needed


def test_every_failure_that_the_courier_names_has_advice(request):
    source = (request.config.rootpath / "megatron_medx" / "launch" / "courier.py").read_text()
    kinds = source[source.index("KINDS = {") : source.index("\n}\n", source.index("KINDS = {"))]
    named = {line.split('"')[1] for line in kinds.splitlines() if '"' in line}
    assert named == set(ADVICE)


def test_a_courier_that_hangs_is_ended_and_the_next_errand_gets_another(tunnel, monkeypatch, tmp_path):
    monkeypatch.setattr(tunnels, "GRACE_S", 0.0)
    hangs = f"time.sleep(100 * (not os.path.exists({str(tmp_path / 'mended')!r})))"
    with tunnel(f"{hangs}; {answers({'answer': {'code': 0, 'out': '', 'err': ''}})}") as way:
        with pytest.raises(NoAnswer, match="me@login: no answer in time: nothing for 1 s"):
            way.run("true", timeout_s=1)
        (tmp_path / "mended").touch()
        assert way.run("true") == Done(0, "", "")


def test_a_courier_that_dies_is_a_defect_and_shows_what_it_said(tunnel):
    with tunnel("raise SystemExit('a defect')") as way, pytest.raises(RuntimeError, match=r"code 1 at run:\na defect"):
        way.run("true")


def test_a_job_around_it_stays_outside(tunnel, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/x")
    text = "' '.join(key for key in os.environ if key.startswith('SLURM_'))"
    with tunnel(answers("{'answer': {'code': 0, 'out': " + text + ", 'err': ''}}")) as way:
        assert way.run("true").out == "SLURM_CONF"


def test_without_its_environment_it_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)no \.venv-launch in .*nemo-run.*make launch-env"):
        Tunnel(tmp_path, Cluster("ours", None, None, "/shared"))
