"""`transformers serve` answers an OpenAI client about images, from the export as it is: examples/serve_and_ask.py."""

import contextlib
import io
import json
import subprocess
import sys

import pytest
import transformers
from PIL import Image

from examples import serve_and_ask

SIDE_PX = 32
"""A token of the decoder stands for a square of 2 x 2 patches of 16 px."""
SIZES = {"small.png": (64, 64), "large.png": (128, 96)}
"""Width and height, px; within the limits of preprocessor_config.json, so that nothing is resized."""
QUESTION = "What is this?"
MAX_TOKENS = 8


@pytest.fixture(scope="module")
def run(export_dir, tmp_path_factory):
    """What the example prints about an image of each size, and every process that it started."""
    folder, started = tmp_path_factory.mktemp("images"), []
    for name, size in SIZES.items():
        Image.effect_noise(size, 40).convert("RGB").save(folder / name)
    words = [str(export_dir), *(str(folder / name) for name in SIZES)]
    words += ["--question", QUESTION, "--max-tokens", str(MAX_TOKENS)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as screen:
        patch.setattr(subprocess, "Popen", _remembering(started))
        serve_and_ask.main(words)
    replies = [json.loads(line) for line in screen.getvalue().splitlines()]
    return {reply["image"]: reply for reply in replies}, started


def _remembering(started):
    """`subprocess.Popen` that also notes every process."""
    popen = subprocess.Popen

    def start(*words, **options):
        started.append(popen(*words, **options))
        return started[-1]

    return start


def test_every_image_is_answered(run):
    replies, _ = run
    assert list(replies) == list(SIZES)
    for reply in replies.values():
        assert reply["answer"]
        assert 1 <= reply["completion_tokens"] <= MAX_TOKENS


def test_the_prompt_holds_each_image_in_its_size(run):
    replies, _ = run
    num_tokens = {name: (width // SIDE_PX) * (height // SIDE_PX) for name, (width, height) in SIZES.items()}
    assert num_tokens == {"small.png": 4, "large.png": 12}
    grown = replies["large.png"]["prompt_tokens"] - replies["small.png"]["prompt_tokens"]
    assert grown == num_tokens["large.png"] - num_tokens["small.png"]


def test_the_prompt_is_that_of_the_processor(run, export_dir):
    """The rest of the prompt, too: the server uses the export's own chat template."""
    replies, _ = run
    processor = transformers.AutoProcessor.from_pretrained(export_dir)
    for name, size in SIZES.items():
        parts = [{"type": "image", "image": Image.new("RGB", size)}, {"type": "text", "text": QUESTION}]
        chat = [{"role": "user", "content": parts}]
        encoded = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
        assert replies[name]["prompt_tokens"] == len(encoded["input_ids"][0])


def test_no_server_stays_behind(run):
    _, started = run
    servers = [process for process in started if "serve" in process.args]
    assert len(servers) == 1
    assert servers[0].poll() is not None


def test_a_server_that_cannot_start_shows_its_log(export_dir, tmp_path, monkeypatch):
    program = tmp_path / "transformers"
    program.write_text("#!/bin/sh\necho no weights in $2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with (
        pytest.raises(RuntimeError, match=rf"the server ended with code 3:\nno weights in {export_dir}"),
        serve_and_ask.serving(export_dir),
    ):
        pass


def test_a_server_that_is_too_slow_is_ended(export_dir, monkeypatch):
    started = []
    monkeypatch.setattr(subprocess, "Popen", _remembering(started))
    monkeypatch.setattr(serve_and_ask, "START_S", 0.5)
    with pytest.raises(RuntimeError, match=r"no answer from http://127\.0\.0\.1:\d+/health within 0\.5 s"):
        serve_and_ask.serving(export_dir).__enter__()
    assert [process.poll() is not None for process in started if "serve" in process.args] == [True]
