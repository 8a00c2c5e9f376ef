"""One item of a source becomes a sample of the data folder: checked, stripped of names, each image decoded once."""

import dataclasses
import json
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from megatron_medx.data.builder.options import BuildOptions
from megatron_medx.data.builder.rejects import BAD_RECORD, BAD_TEXT, Rejected, bad_image
from megatron_medx.data.builder.sources.item import Item
from megatron_medx.data.builder.stacks import open_stack
from megatron_medx.data.builder.tar_shards import member_suffix
from megatron_medx.data.chat import TextSize, measure_text
from megatron_medx.data.image_grid import smart_resize
from megatron_medx.data.images.deidentify import patient_key, strip_dicom, strip_nifti
from megatron_medx.data.images.dicom import is_dicom
from megatron_medx.data.images.files import errors_named, read_image
from megatron_medx.data.images.image_file import ImageFile
from megatron_medx.data.images.nifti import is_nifti
from megatron_medx.data.samples import ImagePart, Part, Sample, StackPart, parse_sample, to_record
from megatron_medx.errors import DataError

ANY_LIMITS = {"factor": 32, "min_pixels": 1, "max_pixels": 2**62}
"""For `smart_resize` where only its refusal counts, which does not depend on them."""


@dataclass(slots=True)
class Notes:
    """What was done to the samples, for the report; names and counts, never values."""

    dropped: dict[str, int] = field(default_factory=dict)
    """Keyword of a DICOM element, or field of a NIfTI header, -> files it was taken out of."""
    num_stripped: int = 0
    """DICOM and NIfTI files that were looked through."""
    num_stacks: int = 0
    """Volumes and slides that became images."""
    num_left_out: int = 0
    """Images of them beyond `max_slices`."""
    num_gaps: int = 0
    """Places in volumes at which slices seem to be missing."""
    num_localizers: int = 0
    """Scout pictures of volumes, left out."""

    def add(self, other: "Notes") -> None:
        """Add another's counts."""
        for keyword, count in other.dropped.items():
            self.dropped[keyword] = self.dropped.get(keyword, 0) + count
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


COUNTS = [field.name for field in dataclasses.fields(Notes) if field.name != "dropped"]


@dataclass(slots=True)
class PreparedSample:
    """A sample as it will be stored."""

    sample: Sample
    record: bytes
    """Its JSON."""
    files: list[tuple[str, bytes]]
    """Name (`0.dcm`) and content; a file that is used twice is there once."""
    text: TextSize
    notes: Notes


def prepare_sample(item: Item, options: BuildOptions, tokenizer: PreTrainedTokenizerBase) -> PreparedSample:
    """Check an item and make its files ready.

    A sample without a patient key has the pseudonym of the first DICOM file that names a patient.

    Args:
        item: of a source.
        options: of the build.
        tokenizer: that training will use.

    Raises:
        Rejected: it breaks the schema, a file of it cannot be used, or it cannot be rendered.
    """
    if item.problem is not None:
        raise item.problem
    try:
        given = parse_sample(item.record)
        # tables may hold what JSON has not; half a surrogate pair can be parsed, but not written
        json.dumps(item.record, ensure_ascii=False, allow_nan=False).encode()
    except TypeError as error:
        raise Rejected(BAD_RECORD, f"a value that JSON does not have ({error})") from error
    except UnicodeEncodeError as error:
        raise Rejected(BAD_RECORD, "half a surrogate pair, which is no text") from error
    except ValueError as error:
        raise Rejected(BAD_RECORD, str(error.args[0])) from error
    shelf = _Shelf(item, options)
    sample = dataclasses.replace(
        given,
        messages=tuple(
            dataclasses.replace(message, parts=shelf.stored_parts(message.parts)) for message in given.messages
        ),
        parts=shelf.stored_parts(given.parts),
    )
    sample = dataclasses.replace(sample, patient=sample.patient or shelf.patient)
    record = json.dumps(to_record(sample, item.record.get("metadata")), ensure_ascii=False).encode()
    try:
        text = measure_text(sample, tokenizer)
    except DataError as error:
        raise Rejected(BAD_TEXT, error.found) from error
    return PreparedSample(sample, record, shelf.files, text, shelf.notes)


class _Shelf:
    """The files of one sample as they are stored."""

    def __init__(self, item: Item, options: BuildOptions):
        self.item, self.options, self.notes = item, options, Notes()
        self.files: list[tuple[str, bytes]] = []
        self.patient = ""
        self._name_of: dict[bytes, str] = {}  # content before it is stripped -> name

    def stored_parts(self, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        """The parts with stacks as images, and images by their stored names with their sizes.

        Raises:
            Rejected: a file cannot be used.
        """
        stored: list[Part] = []
        for part in parts:
            if isinstance(part, ImagePart):
                try:
                    file = self.item.file(part.image)
                except DataError as error:
                    raise bad_image(error, part.image) from error
                stored.append(self._image(part, file))
            elif isinstance(part, StackPart):
                stored += self._stack(part)
            else:
                stored.append(part)
        return tuple(stored)

    def _stack(self, part: StackPart) -> list[ImagePart]:
        try:
            stack = open_stack(self.item, part, self.options)
        except DataError as error:
            raise bad_image(error, part.path, otherwise=part.kind) from error
        counts = {name: getattr(stack, name) for name in ("num_left_out", "num_gaps", "num_localizers")}
        self.notes.add(Notes(dict.fromkeys(stack.dropped, 1), num_stacks=1, **counts))
        return [self._image(image, file) for image, file in stack.images]

    def _image(self, part: ImagePart, file: ImageFile) -> ImagePart:
        """Store a file and look at what the part shows of it.

        What is decoded is what is stored, so what the index names can be read.
        """
        try:
            with errors_named(file):
                name = self._store(file)
            stored = ImageFile(file.name, dict(self.files)[name])
            size = read_image(stored, part.view, self.options.allow_burned_in).size
            smart_resize(size[1], size[0], **ANY_LIMITS)
        except DataError as error:
            raise bad_image(error, file.name) from error
        return ImagePart(name, part.view, part.position, size)

    def _store(self, file: ImageFile) -> str:
        name = self._name_of.get(file.content)
        if name is None:
            content = file.content
            if is_dicom(content):
                self.patient = self.patient or patient_key(content, self.options.patient_key)
                content, dropped = strip_dicom(content)
                self.notes.add(Notes(dict.fromkeys(dropped, 1), num_stripped=1))
            elif is_nifti(content):
                content, dropped = strip_nifti(content)
                self.notes.add(Notes(dict.fromkeys(dropped, 1), num_stripped=1))
            name = f"{len(self.files)}.{member_suffix(content)}"
            self.files.append((name, content))
            self._name_of[file.content] = name
        return name
