"""A fixed page of answers: what the weights say to the first questions of each validation set, greedily.

Comes in: the model of the running loop, and the questions of the sets (data/questions.py). Goes out: a line of
`generations.jsonl` for each validation, set and question:

    step, set      of the validation
    sample_id      the sample whose last answer is left out
    question       its last user turn; [image] stands where an image does
    answer         what the weights say, up to `<|im_end|>` or training.validate_generation_tokens tokens
    expected       the sample's own answer

Megatron's schedule runs the rows as training does, on any grid, once for each token of an answer: nothing is kept of a
pass for the next one, images are encoded anew. All data-parallel replicas answer the same questions. No random number
is drawn and nothing of the run is changed.
"""

import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import mpu
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from megatron_medx.config.run import RunConfig
from megatron_medx.data.chat import DOCUMENT_END, TURN_END
from megatron_medx.data.questions import Question, QuestionRow, first_questions, question_rows
from megatron_medx.data.rows import RowDataset
from megatron_medx.parallel.greedy import greedy_tokens
from megatron_medx.run_folder.names import GENERATIONS_FILE
from megatron_medx.training.monitor import StepMonitor
from megatron_medx.training.step import to_device
from megatron_medx.training.step_lines import read_metrics
from megatron_medx.training.validation_rows import ValidationRows


class GenerationLog:
    """Lets the weights answer after a validation; the reporting rank writes and tells.

    Args:
        config: the run; `training.validate_generations` is above 0.
        folder: run folder.
        rows: of the validation sets, whose first samples ask.
        monitor: knows whether this rank reports, and where people look.
    """

    def __init__(self, config: RunConfig, folder: Path, rows: ValidationRows, monitor: StepMonitor):
        self._num_questions = config.training.validate_generations
        self._answer_tokens = config.training.validate_generation_tokens
        self._path, self._rows, self._monitor = folder / GENERATIONS_FILE, rows, monitor

    def record(self, step: int, model: Sequence[torch.nn.Module]) -> None:
        """Answer the questions of all sets and write them down. Collective over all ranks.

        Args:
            step: optimizer steps done.
            model: this rank's chunks, in training mode before and after.
        """
        lines: list[dict] = []
        for name, of_set in self._rows.sets.items():
            start = time.perf_counter()
            questions = self._questions[name]
            answers = self._answers(model, of_set.dataset, questions) if questions else []
            lines += [
                {
                    "step": step,
                    "set": name,
                    "sample_id": question.sample_id,
                    "question": question.text,
                    "answer": text,
                    "expected": question.expected,
                }
                for question, text in zip(questions, answers, strict=True)
            ]
            self._monitor.announce(
                f"step {step}: {len(answers)} answers of set {name} written to {GENERATIONS_FILE}, "
                f"{time.perf_counter() - start:.1f} s"
            )
        if self._monitor.is_reporter:
            # a resume repeats steps: what was told of them before is dropped
            kept = [former for former in read_metrics(self._path) if former["step"] < step]
            draft = self._path.with_suffix(".tmp")
            draft.write_text("".join(json.dumps(line) + "\n" for line in kept + lines))
            draft.replace(self._path)
            for line in lines:
                self._monitor.trackers.tell_generation(line)

    @functools.cached_property
    def _questions(self) -> dict[str, list[Question]]:
        """Of each set, by name; read once."""
        return {
            name: first_questions(of_set.dataset, of_set.num_rows, self._num_questions, self._answer_tokens)
            for name, of_set in self._rows.sets.items()
        }

    def _answers(
        self, model: Sequence[torch.nn.Module], dataset: RowDataset, questions: Sequence[Question]
    ) -> list[str]:
        """What the weights say to each question."""
        tokenizer = dataset.encoder.tokenizer
        ends = tokenizer.convert_tokens_to_ids([TURN_END, DOCUMENT_END])
        rows = question_rows(dataset, questions)
        for chunk in model:
            chunk.eval()
        answers = generate(model, rows, self._answer_tokens, ends)
        for chunk in model:
            chunk.train()
        return [tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in answers]


@torch.no_grad()
def generate(
    model: Sequence[torch.nn.Module], rows: Sequence[QuestionRow], num_tokens: int, ends: Sequence[int]
) -> list[list[int]]:
    """Tokens of each question's answer, in the order of the questions, without the end; equal on all ranks.

    Args:
        model: this rank's chunks, in evaluation mode.
        rows: their tokens are written into.
        num_tokens: longest answer, as much as the rows have room for.
        ends: tokens that end an answer.
    """
    order = [number for row in rows for number in row.numbers]
    answers: list[list[int]] = [[] for _ in order]
    unended = set(order)
    for place in range(num_tokens):
        chosen_N = next_tokens(model, rows, place)
        for row, of_row in zip(rows, chosen_N.split([len(row.numbers) for row in rows]), strict=True):
            row.row.tokens_1S[0, row.answers_at_N + place] = of_row
        for number, token in zip(order, chosen_N.tolist(), strict=True):
            if token in ends:
                unended.discard(number)
            if number in unended:
                answers[number].append(token)
        if not unended:
            break
    return answers


def next_tokens(model: Sequence[torch.nn.Module], rows: Sequence[QuestionRow], place: int) -> Tensor:
    """(N,) int64 next token of each answer, on the CPU, in the order of the rows; one forward pass of all rows.

    The rank that reports is the last, which has the logits on every grid; its tokens become everyone's, also those of
    replicas that found others by another order of summation.

    Args:
        model, rows: as for `generate`.
        place: tokens that each answer has so far.
    """
    groups = ProcessGroupCollection.use_mpu_process_groups(["tp", "cp", "tp_cp"])

    def forward_step(iterator: Iterator[QuestionRow], chunk: torch.nn.Module) -> tuple[Tensor, Callable]:
        asked = next(iterator)
        row = to_device(asked.row)
        output = chunk(
            tokens_1S=row.tokens_1S,
            positions_3S=row.positions_3S,
            cu_seqlens=row.cu_seqlens,
            pixels_PC=row.pixels_PC,
            grids_I3=row.grids_I3,
            vision_index_M=row.vision_index_M,
        )
        return output, functools.partial(chosen, asked)

    def chosen(asked: QuestionRow, logits_L1V: Tensor, non_loss_data: bool) -> Tensor:
        return greedy_tokens(logits_L1V[:, 0], asked.answers_at_N + place - 1, asked.row.cu_seqlens, groups)

    # interleaved stages take as many microbatches at once as there are stages: the last row fills up, unread
    num_stages = mpu.get_pipeline_model_parallel_world_size() if len(model) > 1 else 1
    microbatches = [*rows, *rows[-1:] * (-len(rows) % num_stages)]
    found = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=[iter(microbatches) for _ in model],
        model=model,
        num_microbatches=len(microbatches),
        seq_length=rows[0].row.tokens_1S.shape[1],
        micro_batch_size=1,
        forward_only=True,
        collect_non_loss_data=True,
    )
    device = torch.cuda.current_device()
    num_answers = sum(len(row.numbers) for row in rows)
    tokens_N = torch.cat(found[: len(rows)]) if found else torch.empty(num_answers, dtype=torch.int64, device=device)
    dist.broadcast(tokens_N, src=dist.get_world_size() - 1)
    return tokens_N.cpu()
