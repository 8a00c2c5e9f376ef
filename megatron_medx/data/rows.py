"""Rows of a run as microbatches: plan, decode, encode, lay side by side.

Comes in: a RunConfig and a global row index. Goes out: the `Microbatch` of that row, the same on any grid and in any
order of asking. A sample that cannot be read stops the run, or, if `data.max_bad_fraction` allows it, is skipped,
counted and named in the log; what takes its place is a function of the row index and the files alone.
"""

import logging
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import AutoTokenizer

from megatron_medx.config.flops import step_flops
from megatron_medx.config.model import ModelConfig
from megatron_medx.config.processor import check_processor, vision_token_ids
from megatron_medx.config.run import DataSection, RunConfig
from megatron_medx.data.chat import EncodedSample, SampleEncoder, SampleSize
from megatron_medx.data.microbatch import Microbatch
from megatron_medx.data.patches import Patcher
from megatron_medx.data.plan import RowPlan, aligned_tokens
from megatron_medx.data.positions import mrope_positions
from megatron_medx.data.samples import Sample, read_samples
from megatron_medx.errors import ConfigError, DataError

log = logging.getLogger(__name__)


def collate(
    samples: list[EncodedSample],
    *,
    image_token_id: int,
    merge_size: int,
    pad_token_id: int = 0,
    sample_align_tokens: int = 1,
    align_tokens: int = 1,
    pad_to_tokens: int | None = None,
) -> Microbatch:
    """Lay samples side by side into one row.

    Args:
        samples: at least one; their order is kept.
        image_token_id, merge_size: of the model.
        pad_token_id, sample_align_tokens: each sample's segment is padded with this token to a multiple of so many.
        align_tokens: behind the last segment the row is padded to a multiple of this.
        pad_to_tokens: pad the row to exactly this many tokens instead (a multiple of align_tokens).

    Example: samples [5, 6, 7] (weights 0, 1, 1) and [8, 9] (weights 0, 1), align_tokens 4:

        tokens      5 6 7 8 9 0 0 0
        labels      6 7 0 9 0 0 0 0      the next token of the same sample
        weights     1 1 0 1 0 0 0 0      the weight of that next token
        positions   0 1 2 0 1 0 1 2      from 0 in every segment (here without images, in all three axes)
        cu_seqlens  0 3 5 8              the tail is a segment of its own

    With sample_align_tokens 4 the tokens are 5 6 7 0 8 9 0 0 and cu_seqlens 0 4 8; sample_tokens stay 3 2.

    Raises:
        DataError: the samples, aligned, have more than pad_to_tokens tokens.
    """
    borders = [0, *accumulate(aligned_tokens(len(sample.tokens_S), sample_align_tokens) for sample in samples)]
    length = _padded_tokens(borders[-1], align_tokens, pad_to_tokens)
    if borders[-1] > length:
        raise DataError(
            f"a row of {borders[-1]} tokens (samples {', '.join(sample.sample_id for sample in samples)})",
            f"at most {length} tokens",
            "raise data.seq_len_tokens",
        )
    tokens = torch.full((length,), pad_token_id)
    labels, weights = torch.zeros_like(tokens), torch.zeros(length)
    positions = torch.empty(3, length, dtype=torch.int64)
    for sample, (start, end) in zip(samples, pairwise(borders), strict=True):
        segment = slice(start, end)
        _write(sample, tokens[segment], labels[segment], weights[segment])
        positions[:, segment] = mrope_positions(tokens[segment], sample.grids_I3, image_token_id, merge_size)
    positions[:, borders[-1] :] = torch.arange(length - borders[-1])
    return Microbatch(
        tokens_1S=tokens[None],
        labels_1S=labels[None],
        loss_weights_1S=weights[None],
        positions_3S=positions,
        cu_seqlens=torch.tensor(sorted({*borders, length}), dtype=torch.int32),
        pixels_PC=torch.cat([sample.pixels_PC for sample in samples]),
        grids_I3=torch.cat([sample.grids_I3 for sample in samples]),
        vision_index_M=(tokens == image_token_id).nonzero()[:, 0],
        sample_ids=[sample.sample_id for sample in samples],
        sample_tokens=[len(sample.tokens_S) for sample in samples],
    )


def _padded_tokens(tokens: int, align_tokens: int, pad_to_tokens: int | None) -> int:
    """Tokens of a row whose samples, aligned, have so many."""
    return aligned_tokens(tokens, align_tokens) if pad_to_tokens is None else pad_to_tokens


def _write(sample: EncodedSample, tokens_L: torch.Tensor, labels_L: torch.Tensor, weights_L: torch.Tensor) -> None:
    """Write a sample to the start of its segment; what it does not fill stays padding, with label and weight 0.

    Example: [5, 6, 7] with weights 0, 1, 1 in a segment of 4 gives tokens 5 6 7 0, labels 6 7 0 0, weights 1 1 0 0.
    Positions, worked out from these tokens, count on through the padding as through text: 0 1 2 3.
    """
    end = len(sample.tokens_S)
    learned = sample.loss_weights_S[1:]
    tokens_L[:end] = sample.tokens_S
    weights_L[: end - 1] = learned
    labels_L[: end - 1] = torch.where(learned > 0, sample.tokens_S[1:], 0)


class RowDataset(Dataset):
    """Row index -> Microbatch, without end: index j is the j-th row of the whole run, over all ranks.

    Args:
        encoder: encodes the samples of the data folder.
        samples: all of them.
        data: packing, lengths, alignment of samples, tolerance.
        model: special token ids and merge size; its sizes decide what a row costs.
        seed: of the order.
        align_tokens: rows are padded to a multiple of this.
        pad_to_tokens: pad every row to exactly this many tokens instead.
        freeze: parts that are not trained; they cost less.

    Raises:
        DataError: a sample is too long or unreadable as far as headers tell, and `max_bad_fraction` does not cover it.
    """

    def __init__(
        self,
        encoder: SampleEncoder,
        samples: list[Sample],
        data: DataSection,
        model: ModelConfig,
        seed: int,
        align_tokens: int = 1,
        pad_to_tokens: int | None = None,
        freeze: tuple[str, ...] = (),
    ):
        self.encoder = encoder
        self.num_samples = len(samples)
        self.bad_sample_ids: set[str] = set()
        """Samples met so far, by this process, that cannot be read."""
        self._max_bad_fraction = data.max_bad_fraction
        self._layout = {
            "image_token_id": model.image_token_id,
            "merge_size": model.vision.merge_size,
            "pad_token_id": encoder.tokenizer.pad_token_id,
            "sample_align_tokens": data.sample_align_tokens,
            "align_tokens": align_tokens,
            "pad_to_tokens": pad_to_tokens,
        }
        self._model, self._freeze = model, freeze
        self.samples, sizes = self._measure(samples)
        self.plan = RowPlan(
            [size.tokens for size in sizes], data.seq_len_tokens, data.packing, seed, data.sample_align_tokens
        )
        self._segment_tokens = [aligned_tokens(size.tokens, data.sample_align_tokens) for size in sizes]
        self._costs = [
            self._flops(tokens, size.patches_per_image)
            for tokens, size in zip(self._segment_tokens, sizes, strict=True)
        ]
        """FLOPs of each sample: segments and images add up, so a row costs what its samples and its tail do."""

    def __getitem__(self, j: int) -> Microbatch:
        """The microbatch of row j.

        Raises:
            DataError: a sample cannot be read, and `max_bad_fraction` does not cover it.
        """
        encoded = self._readable(self.plan.row(j))
        # a row of which nothing is left takes the first readable sample of the rows behind it: still a function of j
        for next_row in range(j + 1, j + 1 + self.plan.rows_per_epoch):
            if encoded:
                break
            encoded = self._readable(self.plan.row(next_row)[:1])
        if not encoded:
            raise DataError(
                "no readable sample", "at least one", "look for the first error above and mend the data folder"
            )
        return collate(encoded, **self._layout)

    def cost(self, j: int) -> int:
        """Estimated FLOPs of row j, forward and backward, padding included: rows are dealt to ranks by it.

        A function of j and the headers alone: a sample that cannot be decoded later, or what takes its place, does not
        change it, so ranks that have met such a sample deal like those that have not. No file is read.
        """
        indices = self.plan.row(j)
        tokens = sum(self._segment_tokens[index] for index in indices)
        tail = _padded_tokens(tokens, self._layout["align_tokens"], self._layout["pad_to_tokens"]) - tokens
        return sum(self._costs[index] for index in indices) + self._flops(tail, [])

    def _flops(self, tokens: int, patches_per_image: list[int]) -> int:
        """FLOPs of one segment of a row and its images."""
        return step_flops(self._model, [tokens], patches_per_image, self._freeze)["total"]

    def _measure(self, samples: list[Sample]) -> tuple[list[Sample], list[SampleSize]]:
        """Samples whose headers can be read, with what they will take."""
        kept, sizes = [], []
        for sample in samples:
            try:
                sizes.append(self.encoder.measure(sample))
                kept.append(sample)
            except DataError as error:
                self._count_bad(sample, error)
        if not kept:
            raise DataError(
                f"none of {len(samples)} samples can be read",
                "at least one",
                "set data.max_bad_fraction=0 to see the first error",
            )
        return kept, sizes

    def _readable(self, indices: list[int]) -> list[EncodedSample]:
        encoded = []
        for sample in (self.samples[index] for index in indices):
            if sample.sample_id in self.bad_sample_ids:
                continue
            try:
                encoded.append(self.encoder.encode(sample))
            except DataError as error:
                self._count_bad(sample, error)
        return encoded

    def _count_bad(self, sample: Sample, error: DataError) -> None:
        """Log a sample that cannot be read; raise when there are more than allowed."""
        if self._max_bad_fraction == 0:
            name = f"sample {sample.sample_id}"
            named = error.found if error.found.startswith(name) else f"{name}: {error.found}"
            raise DataError(named, error.needed, error.do) from error
        self.bad_sample_ids.add(sample.sample_id)
        num_bad = len(self.bad_sample_ids)
        log.warning("sample %s skipped (%d bad so far): %s", sample.sample_id, num_bad, error.found)
        if num_bad > self._max_bad_fraction * self.num_samples:
            raise DataError(
                f"{num_bad} of {self.num_samples} samples cannot be read; the last: {error.found}",
                f"at most data.max_bad_fraction = {self._max_bad_fraction:g} of them",
                "mend the samples named in the log, or raise data.max_bad_fraction",
            ) from error


def build_row_dataset(config: RunConfig, align_tokens: int, pad_to_tokens: int | None = None) -> RowDataset:
    """The rows of a run, checked against its model.

    Args:
        config: sections run (seed), data, model and training (frozen parts) are read.
        align_tokens: what the grid asks a row's length to be a multiple of.
        pad_to_tokens: pad every row to exactly this many tokens instead.

    Raises:
        ConfigError: processor and model disagree on token ids, vocabulary or patch sizes, or data.path is not set.
        DataError: the data folder or the processor directory is not whole.
    """
    data = config.data
    if not data.path:
        raise ConfigError("data.path is not set", "a data folder", "add data.path=FOLDER; `make demo` builds one")
    samples = read_samples(Path(data.path))
    processor = config.processor_folder
    check_processor(processor)
    tokenizer = AutoTokenizer.from_pretrained(processor, local_files_only=True)
    patcher = Patcher.from_directory(processor, data.min_pixels, data.max_pixels)
    _check_against_model(processor, len(tokenizer), patcher, config.model)
    encoder = SampleEncoder(
        tokenizer, patcher, Path(data.path), data.seq_len_tokens, data.sample_align_tokens, data.allow_burned_in
    )
    freeze = config.training.freeze
    return RowDataset(encoder, samples, data, config.model, config.run.seed, align_tokens, pad_to_tokens, freeze)


def _check_against_model(processor: Path, num_tokens: int, patcher: Patcher, model: ModelConfig) -> None:
    """Raises ConfigError with every disagreement at once."""
    of_processor = vision_token_ids(processor)
    of_model = {field: getattr(model, field) for field in of_processor}
    for name in ("patch_size", "merge_size", "temporal_patch_size"):
        of_processor[f"vision.{name}"] = getattr(patcher.processor, name)
        of_model[f"vision.{name}"] = getattr(model.vision, name)
    differing = [name for name, value in of_processor.items() if of_model[name] != value]
    found = [f"model.{name} = {of_model[name]}, processor {of_processor[name]}" for name in differing]
    if num_tokens > model.vocab_size:
        found.append(f"model.vocab_size = {model.vocab_size}, tokenizer {num_tokens} tokens")
    if found:
        raise ConfigError(
            f"{processor} does not fit the model: " + "; ".join(found),
            "equal ids and sizes, and a vocabulary that holds every token",
            "set the model's fields to the processor's values, or data.processor to the directory of this model",
        )
