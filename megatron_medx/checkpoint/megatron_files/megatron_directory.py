"""A Megatron checkpoint root: whose model its weights are, and what lies beside them.

    root/run.yaml                              the run, or only its model section
    root/processor/                            tokenizer, chat template, preprocessor files
    root/latest_checkpointed_iteration.txt     `1200`, or `release` for a converted one
    root/iter_0001200/ or root/release/        the tensors (`torch_dist.py`)

A converted checkpoint is a `release`: Megatron's word for weights that no run has left. `--load root` then starts at
step 0 and asks for neither optimizer nor random state (`megatron.training.checkpointing.load_checkpoint`).
"""

from collections.abc import Mapping
from pathlib import Path

from megatron_medx.checkpoint.layout.tensor_spec import TensorSpec
from megatron_medx.checkpoint.megatron_files.torch_dist import Entries, TorchDistFolder, write_index
from megatron_medx.config.checkpoint_folders import RELEASE, RUN_FILE, TRACKER_FILE, weights_folder
from megatron_medx.config.files import read_model_section, write_model_only
from megatron_medx.config.model import ModelConfig
from megatron_medx.config.processor import PROCESSOR_FOLDER, copy_known_files
from megatron_medx.errors import CheckpointError


class MegatronCheckpoint(TorchDistFolder):
    """A checkpoint opened for reading, from its root, the run folder around it, or one of its iteration folders.

    Attributes:
        root: folder with run.yaml.
        model: sizes from run.yaml.
        processor_folder: `root/processor`; it may be absent.
        specs: key -> shape and dtype of every model weight (see TorchDistFolder).
    Raises:
        CheckpointError: not a checkpoint, an unfinished or damaged one, or one without run.yaml.
    """

    def __init__(self, path: Path):
        super().__init__(weights_folder(path))
        self.root = self.folder.parent
        self.processor_folder = self.root / PROCESSOR_FOLDER
        if not (self.root / RUN_FILE).is_file():
            raise CheckpointError(
                f"{self.root} has no {RUN_FILE}",
                "the run's configuration beside its checkpoints (it says how the heads are arranged)",
                f"copy the run's {RUN_FILE} there",
            )
        self.model: ModelConfig = read_model_section(self.root / RUN_FILE)


def complete_root(
    root: Path,
    model: ModelConfig,
    specs: Mapping[str, TensorSpec],
    files: Mapping[str, Entries],
    *,
    processor_folder: Path,
    provenance: Mapping[str, object],
) -> None:
    """Make a folder whose data files lie in `release` a release checkpoint.

    Args:
        root: the folder.
        model: sizes, for run.yaml.
        specs: every tensor.
        files: name of each data file -> where each tensor and object lies in it.
        processor_folder: where the tokenizer files are copied from.
        provenance: what made the weights, for run.yaml.
    """
    write_index(root / RELEASE, specs, files)
    copy_known_files(processor_folder, root / PROCESSOR_FOLDER)
    write_model_only(model, root / RUN_FILE, dict(provenance))
    # Last, as Megatron does it: the tracker only ever names a complete folder.
    (root / TRACKER_FILE).write_text(RELEASE)
