"""Serve an exported directory with `transformers serve` and ask it about images, as any OpenAI client would.

    pip install 'megatron-medx[serve]'
    python examples/serve_and_ask.py runs/demo/hf data/demo/source/images/fundus.png

The server runs on the CPU and ends with the program. vLLM and SGLang answer the same requests on a GPU; there the
server is `vllm serve EXPORT` or `python -m sglang.launch_server --model-path EXPORT`.
"""

import argparse
import base64
import json
import mimetypes
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openai import OpenAI

START_S = 120
"""How long a server may take until it answers: imports and weights."""
LOG_LINES = 30
"""Lines of the server's log that are shown when it fails."""


def main(words: list[str] | None = None) -> None:
    """Answer one question about each image; a line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--question", default="What does this image show?")
    parser.add_argument("--max-tokens", type=int, default=32)
    args = parser.parse_args(words)
    with serving(args.export) as url:
        for image in args.images:
            print(json.dumps(ask(url, args.export, image, args.question, args.max_tokens)), flush=True)


@contextmanager
def serving(export: Path) -> Iterator[str]:
    """Run `transformers serve` on a free port until the block ends.

    Args:
        export: Hugging Face directory.
    Yields:
        The base URL of its OpenAI interface.
    Raises:
        RuntimeError: it ended or did not answer within START_S; the message holds the end of its log.
    """
    port = _free_port()
    program = Path(sys.executable).with_name("transformers")
    command = [program, "serve", export.resolve(), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile("w+") as log:
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            _wait(server, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(timeout=20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def ask(url: str, export: Path, image: Path, question: str, max_tokens: int) -> dict:
    """One chat request with an image inside it, as a data URL.

    Returns:
        `answer`, `prompt_tokens` (text and image tokens) and `completion_tokens`.
    """
    kind = mimetypes.guess_type(image.name)[0]
    content = base64.b64encode(image.read_bytes()).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{content}"}},
        {"type": "text", "text": question},
    ]
    client = OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
    reply = client.chat.completions.create(
        model=str(export.resolve()),
        messages=[{"role": "user", "content": parts}],
        max_tokens=max_tokens,
        temperature=0,
    )
    usage = reply.usage
    return {
        "image": image.name,
        "answer": reply.choices[0].message.content,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }


def _wait(server: subprocess.Popen, url: str, log) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with code {server.returncode}:\n{_tail(log)}")
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.2)  # not listening yet
    raise RuntimeError(f"no answer from {url} within {START_S} s:\n{_tail(log)}")


def _tail(log) -> str:
    log.seek(0)
    return "".join(log.readlines()[-LOG_LINES:])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
