"""Rows of a run as microbatches: plan, read, encode, decode, lay side by side.

Comes in: a RunConfig, the tables of its data (plan/prepare.py) and a global row index. Goes out: the `Microbatch` of
that row, the same on any grid and in any order of asking; of its images those that this rank encodes. A sample whose
bytes are not those of the index stops the run, or, if `data.max_bad_fraction` allows it, is left out, counted and
named; the other samples of the row stay where they are.
"""

import json
import logging
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import AutoTokenizer

from megatron_medx.config.flops import step_flops
from megatron_medx.config.model import ModelConfig
from megatron_medx.config.precision import row_multiple_tokens
from megatron_medx.config.processor import check_processor, vision_token_ids
from megatron_medx.config.run import RunConfig
from megatron_medx.data.chat import EncodedSample, SampleEncoder
from megatron_medx.data.collate import collate, padded_tokens
from megatron_medx.data.decoder_choice import make_decoder
from megatron_medx.data.microbatch import Microbatch
from megatron_medx.data.patches import Patcher
from megatron_medx.data.plan.prepare import open_prepared, prepare_data
from megatron_medx.data.plan.row_plan import aligned_tokens, plan_rows
from megatron_medx.data.reader import DamagedSample, ShardReader
from megatron_medx.errors import ConfigError, DataError

log = logging.getLogger(__name__)


class RowDataset(Dataset):
    """Row index -> Microbatch, without end: index j is the j-th row of the whole run, over all ranks.

    It can be sent to a worker process, which opens the same files anew.

    Args:
        config: sections run (seed), data, model and training (frozen parts) are read.
        prepared: folder of `prepare_data`.
        align_tokens: rows are padded to a multiple of this.
        pad_to_tokens: pad every row to exactly this many tokens instead.
        wanted: grids of a row's images, (I, 3) int64 -> numbers of those that are decoded, ascending; None means all.
        rejects: file to which each sample that is left out is added, a JSON line as in the data folder's rejects.jsonl.

    Raises:
        ConfigError: processor and model disagree on token ids, vocabulary or patch sizes.
        DataError: the processor directory is not whole.
    """

    def __init__(
        self,
        config: RunConfig,
        prepared: Path,
        align_tokens: int = 1,
        pad_to_tokens: int | None = None,
        wanted: Callable[[torch.Tensor], list[int]] | None = None,
        rejects: Path | None = None,
    ):
        self._made_of = config, prepared, align_tokens, pad_to_tokens, wanted, rejects
        data, model, processor = config.data, config.model, config.processor_folder
        check_processor(processor)
        tokenizer = AutoTokenizer.from_pretrained(processor, local_files_only=True)
        patcher = Patcher.from_directory(processor, data.min_pixels, data.max_pixels)
        _check_against_model(processor, len(tokenizer), patcher, model)
        align = data.sample_align_tokens
        self.encoder = SampleEncoder(tokenizer, patcher, data.seq_len_tokens, align, data.max_row_patches)
        self.tables, mixture = open_prepared(config, prepared)
        self.readers = [ShardReader(source.path, table) for source, table in zip(mixture, self.tables, strict=True)]
        self.plan = plan_rows(config, self.tables, mixture)
        self.bad_samples: set[tuple[int, int]] = set()
        """(source, number) of those that this process has met and left out."""
        self.scratch: tempfile.TemporaryDirectory | None = None
        """Where the tables lie, if they are to go with this dataset."""
        self._decoder = make_decoder(data.decoder, patcher)
        self._max_bad = data.max_bad_fraction * sum(map(len, self.tables))
        self._wanted, self._rejects = wanted, rejects
        self.align_tokens = align_tokens
        self._model, self._freeze = model, config.training.freeze
        self._layout = {
            "image_token_id": model.image_token_id,
            "merge_size": model.vision.merge_size,
            "pad_token_id": tokenizer.pad_token_id,
            "sample_align_tokens": align,
            "align_tokens": align_tokens,
            "pad_to_tokens": pad_to_tokens,
        }

    def __reduce__(self) -> tuple:
        """Without this the tables would be copied."""
        return type(self), self._made_of

    def __getitem__(self, j: int) -> Microbatch:
        """The microbatch of row j.

        Raises:
            DataError: a sample changed since it was built, and `max_bad_fraction` does not cover it; a shard cannot be
                read; all sources have reached their epoch limits.
        """
        encoded = self._encoded(self.plan.row(j))
        # a row of which nothing is left takes the first sound sample of the rows behind it: still a function of j
        next_row = j
        while not encoded:
            next_row += 1
            encoded = self._encoded(self.plan.row(next_row)[:1])
        return self.lay(encoded, self._layout["pad_to_tokens"])

    def lay(self, samples: list[EncodedSample], pad_to_tokens: int | None) -> Microbatch:
        """These samples side by side, their images decoded, padded to so many tokens instead of the rows' number."""
        return collate(samples, self._pixels(samples), **self._layout | {"pad_to_tokens": pad_to_tokens})

    def cost(self, j: int) -> float:
        """Estimated FLOPs of row j, forward and backward, padding included: rows are dealt to ranks by it.

        A function of j and the tables alone: a sample that is found damaged later, or what takes its place, does not
        change it, so ranks that have met such a sample deal like those that have not. No shard is read.
        """
        align = self._layout["sample_align_tokens"]
        lengths = (int(self.tables[source]["tokens"][number]) for source, number in self.plan.row(j))
        tokens = sum(aligned_tokens(length, align) for length in lengths)
        tail = padded_tokens(tokens, self._layout["align_tokens"], self._layout["pad_to_tokens"]) - tokens
        return self.plan.cost(j) + step_flops(self._model, [tail], [], self._freeze)["total"]

    def _encoded(self, numbers: list[tuple[int, int]]) -> list[EncodedSample]:
        encoded = []
        for source, number in numbers:
            if (source, number) in self.bad_samples:
                continue
            try:
                stored = self.readers[source].read(number)
                encoded.append(self.encoder.encode(stored.sample, stored.files))
                encoded[-1].folder = source
            except DamagedSample as error:  # all ranks of the row meet it alike; of no other error is that sure
                self._leave_out(source, number, error)
        return encoded

    def _pixels(self, samples: list[EncodedSample]) -> torch.Tensor:
        """(P, C) patches of the wanted images."""
        images = [image for sample in samples for image in sample.images]
        if self._wanted is not None:
            wanted = self._wanted(torch.cat([sample.grids_I3 for sample in samples]))
            images = [images[number] for number in wanted]
        patches = self._decoder.patches(images)
        return torch.cat(patches) if patches else torch.zeros(0, self.encoder.patcher.patch_dim)

    def _leave_out(self, source: int, number: int, error: DamagedSample) -> None:
        """Count a sample that changed since it was built; raise when there are more than allowed."""
        self.bad_samples.add((source, number))
        num_bad = len(self.bad_samples)
        if num_bad > self._max_bad:
            if num_bad == 1:
                raise error
            raise DataError(
                f"{num_bad} samples cannot be used; the last: {error.found}",
                f"at most {self._max_bad:g}, data.max_bad_fraction of all",
                error.do,
            ) from error
        folder = self.readers[source].folder
        log.warning("sample %d of %s left out (%d so far): %s", number, folder, num_bad, error.found)
        if self._rejects:
            reject = {"id": number, "file": str(folder), "reason": "changed since it was built", "found": error.found}
            with open(self._rejects, "a", encoding="utf-8") as file:
                file.write(json.dumps(reject, ensure_ascii=False) + "\n")


def row_lengths(config: RunConfig) -> dict[str, int | None]:
    """`align_tokens` and `pad_to_tokens` of a run's rows.

    Tensor and context ranks share a row's tokens evenly; packed rows are all of one length, which compiled kernels and
    pipeline stages like. In FP8 each rank's part is a multiple of tokens (config/precision.py).
    """
    data, grid = config.data, config.parallel
    align = math.lcm(data.sample_align_tokens, grid.tensor * grid.context, row_multiple_tokens(config))
    return {"align_tokens": align, "pad_to_tokens": data.seq_len_tokens if data.packing else None}


def build_row_dataset(config: RunConfig, align_tokens: int = 1, pad_to_tokens: int | None = None) -> RowDataset:
    """The rows of a run for programs that are none: the tables are made for the time that the dataset lives.

    Args:
        config, align_tokens, pad_to_tokens: of `RowDataset`.

    Raises:
        ConfigError, DataError: as `prepare_data` and `RowDataset`.
    """
    scratch = tempfile.TemporaryDirectory(prefix="medx-")
    prepare_data(config, Path(scratch.name))
    dataset = RowDataset(config, Path(scratch.name), align_tokens, pad_to_tokens)
    dataset.scratch = scratch
    return dataset


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
