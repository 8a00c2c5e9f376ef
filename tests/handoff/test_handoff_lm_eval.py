"""lm-evaluation-harness reads the export as `hf-multimodal`: the tasks of examples/lm_eval, by its command line.

What it reports is compared with the same weights run by stock transformers here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

TASKS = Path(__file__).parents[2] / "examples" / "lm_eval"
QUESTIONS = (
    {"image": "images/0.png", "question": "Which imaging modality is this?", "answer": "X-ray"},
    {"image": "images/1.png", "question": "Which imaging modality is this?", "answer": "CT"},
    {"image": "images/2.png", "question": "Which body region is shown?", "answer": "Chest"},
)
"""In the form of the demo's questions.jsonl."""
MAX_NEW_TOKENS = 16
"""As in image_questions.yaml."""


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder in which the demo's questions lie where the tasks look for them."""
    folder = tmp_path_factory.mktemp("work")
    source = folder / "data/demo/source"
    (source / "images").mkdir(parents=True)
    for number, line in enumerate(QUESTIONS):
        Image.effect_noise((64 + 32 * number, 96), 40).convert("RGB").save(source / line["image"])
    (source / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in QUESTIONS))
    return folder


@pytest.fixture(scope="module")
def report(work, export_dir) -> dict:
    """Task -> its results, and the line about each question."""
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf-multimodal"]
    command += ["--model_args", f"pretrained={export_dir},dtype=float32", "--device", "cpu"]
    command += ["--include_path", str(TASKS), "--tasks", "medx_image_questions,medx_blind_questions"]
    command += ["--apply_chat_template", "--log_samples", "--output_path", "out"]
    environment = os.environ | {"HF_HOME": str(work / "cache")}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    (results,) = (work / "out").rglob("results_*.json")
    found = json.loads(results.read_text())["results"]
    for task in found:
        (samples,) = (work / "out").rglob(f"samples_{task}_*.jsonl")
        found[task]["lines"] = [json.loads(line) for line in samples.read_text().splitlines()]
    return found


@pytest.fixture(scope="module")
def stock(export_dir):
    """The export in stock transformers: model and processor."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(export_dir).eval()
    return model, transformers.AutoProcessor.from_pretrained(export_dir)


def test_both_tasks_give_numbers(report):
    assert 0 <= report["medx_image_questions"]["exact_match,none"] <= 1
    assert len(report["medx_image_questions"]["lines"]) == len(QUESTIONS)
    # The last question has one answer in these data, so it is always right; of the two others one is.
    assert report["medx_blind_questions"]["acc,none"] == pytest.approx(2 / 3)


def test_log_likelihoods_are_those_of_transformers(report, stock):
    model, processor = stock
    worst, num_compared = 0.0, 0
    for line in report["medx_blind_questions"]["lines"]:
        for arguments, (reported, _) in zip(line["arguments"].values(), line["filtered_resps"], strict=True):
            ours = log_likelihood(model, processor.tokenizer, arguments["arg_0"], arguments["arg_1"])
            worst = max(worst, abs(ours - float(reported)))
            num_compared += 1
    assert num_compared == 5
    assert worst < 1e-5  # of about -25; 0.0 measured on 2026-11-23


def test_answers_about_images_are_those_of_transformers(report, stock, work):
    model, processor = stock
    answers = []
    for line, question in zip(report["medx_image_questions"]["lines"], QUESTIONS, strict=True):
        image = Image.open(work / "data/demo/source" / question["image"])
        parts = [{"type": "image", "image": image}, {"type": "text", "text": question["question"]}]
        chat = [{"role": "user", "content": parts}]
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)[0]
        answers.append(processor.decode(tokens[inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        assert line["filtered_resps"] == [answers[-1]]
    assert answers[0] != answers[1]  # the same question: only the image tells them apart


def log_likelihood(model, tokenizer, context: str, continuation: str) -> float:
    """Sum of log-probabilities of a continuation's tokens after a context, white space between them counted with it.

    The harness cuts there (lm_eval 0.4.13, `TemplateLM._encode_pair`): the line break that ends the chat template's
    prompt adds the same to every choice of a question.
    """
    end_of_context = len(context.rstrip())
    whole, start = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (context + continuation, context[:end_of_context])
    )
    assert whole[: len(start)] == start
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([whole])).logits[0, len(start) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(whole[len(start) :])[:, None]).sum().item()
