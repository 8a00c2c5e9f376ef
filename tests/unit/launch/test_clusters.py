"""Cluster files as a workstation reads them: the lines for launching, and nothing else of the shell."""

import pytest

from megatron_medx.errors import ConfigError
from megatron_medx.launch.clusters import Cluster, read_cluster


@pytest.fixture
def written(tmp_path):
    """Function (text of slurm/clusters/ours.env) -> the Cluster."""
    folder = tmp_path / "slurm" / "clusters"
    folder.mkdir(parents=True)
    (folder / "example.env").write_text("")

    def read(text, name="ours"):
        (folder / "ours.env").write_text(text)
        return read_cluster(tmp_path, name)

    return read


def test_lines_for_launching_are_read_as_text(written):
    text = (
        "module load cuda/13\nexport SBATCH_ACCOUNT=$(groups)\n#     MEDX_LAUNCH_USER=nobody\n"
        "MEDX_LAUNCH_HOST=login1  # of two\nexport MEDX_LAUNCH_FOLDER='/shared/my medx'\n  MEDX_LAUNCH_USER=\"me\"\n"
    )
    cluster = written(text)
    assert cluster == Cluster("ours", "login1", "me", "/shared/my medx")
    assert cluster.place == "me@login1"


def test_without_a_host_it_is_this_machine_and_this_checkout(written, tmp_path):
    assert written("") == Cluster("ours", None, None, str(tmp_path))
    assert written("MEDX_LAUNCH_FOLDER=../there").folder == str(tmp_path.parent / "there")
    assert written("").place == "this machine"


def test_an_unknown_cluster_names_those_there_are(written):
    with pytest.raises(ConfigError, match=r"(?s)no slurm/clusters/our\.env.*one of ours.*did you mean ours\?"):
        written("", name="our")
    with pytest.raises(ConfigError, match=r"(?s)one of ours.*copy slurm/clusters/example\.env"):
        written("", name="moon")
    with pytest.raises(ConfigError, match="unknown cluster example"):
        written("", name="example")
    with pytest.raises(ConfigError, match=r"unknown cluster \.\./ours"):
        written("", name="../ours")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MEDX_LAUNCH_HOST=login", "MEDX_LAUNCH_HOST=login and no folder"),
        ("MEDX_LAUNCH_HOST=login\nMEDX_LAUNCH_FOLDER=medx", "MEDX_LAUNCH_FOLDER=medx"),
        ("\nMEDX_LAUNCH_PORT=22", r"ours\.env, line 2: MEDX_LAUNCH_PORT"),
        ("MEDX_LAUNCH_FOLDER=$HOME/medx", r"line 1: MEDX_LAUNCH_FOLDER=\$HOME/medx"),
        ("MEDX_LAUNCH_FOLDER=`pwd`", "nothing is expanded"),
        ("MEDX_LAUNCH_HOST=a b", "one word"),
        ("MEDX_LAUNCH_HOST='a", "one word"),
        ("MEDX_LAUNCH_HOST=", "one word"),
    ],
)
def test_what_cannot_be_read_is_refused(written, text, message):
    with pytest.raises(ConfigError, match=message):
        written(text)


def test_shipped_clusters_can_be_read(request):
    """`local` is this machine, and every key that the example explains is one that is read."""
    root = request.config.rootpath
    assert read_cluster(root, "local") == Cluster("local", None, None, str(root))
    example = (root / "slurm" / "clusters" / "example.env").read_text()
    for key in ("MEDX_LAUNCH_HOST", "MEDX_LAUNCH_USER", "MEDX_LAUNCH_FOLDER"):
        assert f"#     {key}=" in example
