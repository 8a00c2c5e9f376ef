"""Multiple-choice questions as lines of samples.jsonl, and how the build takes them."""

import pytest

from megatron_medx.data.builder.build import build_data
from megatron_medx.data.builder.options import BuildOptions
from megatron_medx.data.choices import choice_records, refuse_wrong_options
from megatron_medx.data.index import Manifest
from megatron_medx.data.rows import build_row_dataset
from megatron_medx.data.samples import Choice, parse_sample, to_record
from megatron_medx.errors import DataError


def test_a_question_is_a_conversation_for_each_option():
    records = choice_records("q7", "Which organ?", ["Liver", "Heart", "Lung"], answer=1)
    samples = [parse_sample(record) for record in records]
    assert [sample.sample_id for sample in samples] == ["q7-0", "q7-1", "q7-2"]
    assert [sample.choice for sample in samples] == [Choice("q7", 3, number == 1) for number in range(3)]
    assert [sample.messages[1].parts[0].text for sample in samples] == ["Liver", "Heart", "Lung"]
    assert len({sample.messages[0] for sample in samples}) == 1
    assert [parse_sample(to_record(sample)) for sample in samples] == samples
    assert samples[1].notes.choice.correct


@pytest.mark.parametrize(("options", "answer"), [(["a"], 0), (["a", "a"], 0), (["a", "b"], 2), (["a", "b"], -1)])
def test_what_is_no_question_is_refused(options, answer):
    with pytest.raises(ValueError, match="question q: options"):
        choice_records("q", "What?", options, answer)


def test_the_options_of_a_question_fall_into_one_split(demo, write_source, tmp_path):
    records = [one for number in range(12) for one in choice_records(f"q{number}", "What?", ["a", "b", "c"], 0)]
    options = BuildOptions(splits={"train": 0.5, "val": 0.5}, report_picture=False, processor=demo / "processor")
    build_data(write_source(records, "source"), tmp_path / "out", options)
    sizes = [Manifest.read(tmp_path / "out" / name).num_samples for name in ("train", "val")]
    assert sum(sizes) == 36 and all(size % 3 == 0 for size in sizes) and min(sizes) > 0


def test_a_wrong_option_is_not_trained_on(demo, write_folder, run_config):
    right, wrong = choice_records("q", "What?", ["a", "b"], 0)
    refuse_wrong_options(build_row_dataset(run_config(write_folder([right], "right")))[0])
    with pytest.raises(DataError, match=r"sample q-1 of the training data is a wrong option of question q"):
        refuse_wrong_options(build_row_dataset(run_config(write_folder([wrong], "wrong")))[0])
