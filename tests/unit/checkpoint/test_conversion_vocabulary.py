"""Added tokens: which rows they get, what the tokenizer's files say, what is refused."""

import json
import pickle
from dataclasses import replace

import pytest
import torch
import transformers
import yaml
from conversion_networks import random_tensors, tiny_model, write_hf
from safetensors.torch import load_file
from tokenizers import Tokenizer, models

from megatron_medx.checkpoint.convert import megatron_content, to_hf, to_megatron
from megatron_medx.checkpoint.sources.vocabulary import RULE, grown_size
from megatron_medx.checkpoint.verify import bit_equal
from megatron_medx.config.processor import vision_token_ids
from megatron_medx.data.demo import tokenizer as demo_tokenizer
from megatron_medx.errors import CheckpointError

NEW = ["<|slice|>", "<|finding|>", "5 mm", "<|im_start|>nurse", "Φ", "<|end_of_study|>"]
NUM_ROWS, GROWN_ROWS = 330, 384
OUTPUT, EMBEDDING = "lm_head.weight", "model.language_model.embed_tokens.weight"
OLD_TEXT = "<|im_start|>user\nA slice of 5 mm, no findings.<|im_end|>\n"


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    """A processor as the demo's, of 300 trained tokens: 326 with Qwen's added ones."""
    folder = tmp_path_factory.mktemp("tokenizer") / "processor"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(demo_tokenizer, "NUM_TRAINED_TOKENS", 300)
        words = (
            "slice",
            "finding",
            "findings",
            "study",
            "end",
            "nurse",
            "user",
            "chest",
            "lung",
            "without",
            "shadow",
            "normal",
        )
        demo_tokenizer.write_processor(folder, [" ".join(words)] * 9)
    return folder


@pytest.fixture
def hf(processor, tmp_path):
    """Function (tied) -> a directory with that tokenizer and four free rows, and its tensors."""

    def write(tied=False):
        model = replace(tiny_model(tied=tied), vocab_size=NUM_ROWS, **vision_token_ids(processor))
        tensors = random_tensors(model, torch.bfloat16)
        folder = write_hf(tmp_path / "hf", model, tensors)
        for file in processor.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder, tensors

    return write


def token_file(tmp_path, tokens):
    (tmp_path / "tokens.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return tmp_path / "tokens.txt"


def exported(tmp_path):
    to_hf(tmp_path / "root", tmp_path / "out")
    return load_file(tmp_path / "out" / "model.safetensors")


def expected_rows(rows, pieces, num_rows):
    """The rule by hand, one number after the other, in Python's own float64."""
    made = [list(map(float, row)) for row in rows]
    for number, ids in enumerate(pieces):
        mean = [sum(column) / len(ids) for column in zip(*(rows[index].tolist() for index in ids), strict=True)]
        made[326 + number : 327 + number] = [mean]
    real = [sum(column) / 326 for column in zip(*(row.tolist() for row in rows[:326]), strict=True)]
    made += [real] * (num_rows - len(made))
    return torch.tensor(made, dtype=torch.float64)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("tokens", "num_rows"), [(NEW, GROWN_ROWS), (NEW[:2], NUM_ROWS)])
def test_rows_are_as_the_rule_says(hf, processor, tmp_path, tied, tokens, num_rows):
    folder, tensors = hf(tied)
    pieces = [Tokenizer.from_file(str(processor / "tokenizer.json")).encode(token).ids for token in tokens]
    assert all(len(ids) > 1 for ids in pieces)
    to_megatron(folder, tmp_path / "root", add_tokens=token_file(tmp_path, tokens))
    found = exported(tmp_path)
    assert set(found) == set(tensors) and (OUTPUT in found) != tied
    for key, before in tensors.items():
        if key not in (OUTPUT, EMBEDDING):
            assert bit_equal(found[key], before)
            continue
        assert found[key].shape == (num_rows, 40) and found[key].dtype == torch.bfloat16
        assert torch.equal(found[key][:326], before[:326])
        # one rounding to bfloat16 (2^-8) of a value below 4: at most 2^-7
        made = expected_rows(before, pieces, num_rows)
        torch.testing.assert_close(found[key].double(), made, rtol=2**-8, atol=1e-12)
    taken = min(326 + len(tokens), NUM_ROWS)
    assert torch.equal(found[EMBEDDING][taken:NUM_ROWS], tensors[EMBEDDING][taken:])


def test_values_are_rounded_once(hf, processor, tmp_path):
    """With --dtype fp32 the means keep what bfloat16 would lose."""
    folder, tensors = hf()
    pieces = [Tokenizer.from_file(str(processor / "tokenizer.json")).encode(token).ids for token in NEW]
    to_megatron(folder, tmp_path / "root", add_tokens=token_file(tmp_path, NEW), dtype="fp32")
    made = expected_rows(tensors[EMBEDDING], pieces, GROWN_ROWS)
    found = exported(tmp_path)[EMBEDDING]
    assert found.dtype == torch.float32 and torch.equal(found, made.float())


def test_the_export_knows_the_tokens_and_the_old_text_as_before(hf, tmp_path):
    folder, _ = hf()
    to_megatron(folder, tmp_path / "root", add_tokens=token_file(tmp_path, NEW))
    exported(tmp_path)
    before, after = (transformers.AutoTokenizer.from_pretrained(one) for one in (folder, tmp_path / "out"))
    assert [after(token)["input_ids"] for token in NEW] == [[326 + number] for number in range(len(NEW))]
    assert after("lung<|slice|>5 mm")["input_ids"] == [*before("lung")["input_ids"], 326, 328]
    assert after.decode(after("lung<|slice|>")["input_ids"], skip_special_tokens=True) == "lung"
    text = OLD_TEXT.replace("5 mm", "5mm")
    assert after(text)["input_ids"] == before(text)["input_ids"]
    for name in ("chat_template.jinja", "vocab.json", "merges.txt", "preprocessor_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    entries = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert entries["327"] == entries["300"] | {"content": "<|finding|>"} and len(entries) == 32
    networks = [transformers.AutoModelForImageTextToText.from_pretrained(one) for one in (folder, tmp_path / "out")]
    tokens = torch.tensor([before(text)["input_ids"]])
    with torch.inference_mode():
        old, new = (network.float().eval()(input_ids=tokens).logits for network in networks)
    assert new.shape[-1] == GROWN_ROWS
    torch.testing.assert_close(new[..., :326], old[..., :326], rtol=0, atol=1e-5)  # measured 0.0; they reach 26


def test_run_yaml_says_what_was_added_by_which_rule(hf, tmp_path):
    folder, _ = hf()
    file = token_file(tmp_path, NEW)
    to_megatron(folder, tmp_path / "root", add_tokens=file)
    written = yaml.safe_load((tmp_path / "root" / "run.yaml").read_text())
    assert written["model"]["vocab_size"] == GROWN_ROWS
    said = written["provenance"]["added_tokens"]
    assert said["rule"] == RULE and said["rows"] == [NUM_ROWS, GROWN_ROWS]
    assert [entry["id"] for entry in said["tokens"].values()] == list(range(326, 332))
    assert written["provenance"]["command"].endswith(f"root --add-tokens {file}")


def test_a_checkpoint_grows_as_the_directory_does_whoever_writes_it(hf, tmp_path):
    folder, _ = hf()
    file = token_file(tmp_path, NEW)
    to_megatron(folder, tmp_path / "root", add_tokens=file)
    to_megatron(folder, tmp_path / "plain")
    to_megatron(tmp_path / "plain", tmp_path / "grown", add_tokens=file, num_workers=2, shard_size_bytes=50_000)
    to_hf(tmp_path / "grown", tmp_path / "again")
    first, second = exported(tmp_path), load_file(tmp_path / "again" / "model.safetensors")
    assert set(first) == set(second) and all(bit_equal(first[key], second[key]) for key in first)
    assert (tmp_path / "grown" / "processor" / "tokenizer.json").read_bytes() == (
        tmp_path / "root" / "processor" / "tokenizer.json"
    ).read_bytes()


def test_a_file_of_ids_of_older_directories_is_kept_up(hf, tmp_path):
    folder, _ = hf()
    (folder / "added_tokens.json").write_text('{"<tool_call>": 314}')
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["added_tokens_decoder"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    to_megatron(folder, tmp_path / "root", add_tokens=token_file(tmp_path, NEW[:1]))
    written = tmp_path / "root" / "processor"
    assert json.loads((written / "added_tokens.json").read_text()) == {"<tool_call>": 314, "<|slice|>": 326}
    assert json.loads((written / "tokenizer_config.json").read_text()) == config
    assert transformers.AutoTokenizer.from_pretrained(written)("<|slice|>")["input_ids"] == [326]


def test_what_is_read_can_be_sent_to_another_process(hf, tmp_path):
    folder, _ = hf()
    content = megatron_content(folder, add_tokens=token_file(tmp_path, NEW))
    copied = pickle.loads(pickle.dumps(content.read))
    for one in content.bound:
        assert all(map(bit_equal, copied(one), content.read(one)))
    other = megatron_content(folder, add_tokens=token_file(tmp_path, ["<|other|>", *NEW[1:]]))
    assert other.specs == content.specs and other.options != content.options  # no resuming with the other's files


def test_sizes_grow_to_multiples_of_128_only_where_they_must():
    assert [grown_size(151936, tokens) for tokens in (151670, 151936, 151937)] == [151936, 151936, 152064]
    assert grown_size(330, 384) == 384


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<|a|>\n<|im_end|>\n", r"line 2: '<\|im_end\|>' is token 302 already"),
        ("a\n", r"line 1: 'a' is token \d+ already"),
        ("<|a|>\n<|b|>\n<|a|>\n", r"line 3 '<\|a\|>' is line 1 again"),
        ("<|a|>\n\n<|b|>\n", "line 2 is empty"),
        ("", "line 1 is empty"),
        ("<|a|> \n", "line 1 '<.a.> ' begins or ends in white space"),
    ],
)
def test_lines_that_are_no_new_tokens_are_refused(hf, tmp_path, content, message):
    folder, _ = hf()
    (tmp_path / "tokens.txt").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        to_megatron(folder, tmp_path / "root", add_tokens=tmp_path / "tokens.txt")
    assert not (tmp_path / "root").exists()


def test_unreadable_files_are_refused(hf, tmp_path):
    folder, _ = hf()
    with pytest.raises(CheckpointError, match=r"absent\.txt cannot be read"):
        to_megatron(folder, tmp_path / "root", add_tokens=tmp_path / "absent.txt")
    (tmp_path / "tokens.txt").write_bytes(b"\xff\xfe\n")
    with pytest.raises(CheckpointError, match=r"tokens\.txt cannot be read"):
        to_megatron(folder, tmp_path / "root", add_tokens=tmp_path / "tokens.txt")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read(.|\n)*leave --add-tokens out"):
        to_megatron(folder, tmp_path / "root", add_tokens=token_file(tmp_path, NEW))


def test_text_without_pieces_and_a_tokenizer_that_is_too_large_are_refused(hf, tmp_path):
    folder, _ = hf()
    tokenizer = Tokenizer(models.BPE({"w": 0}, []))  # no bytes: what it does not know is dropped
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"'<.a.>' gives no tokens with .*tokenizer\.json"):
        to_megatron(folder, tmp_path / "root", add_tokens=token_file(tmp_path, ["<|a|>"]))
    tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(331)}, unk_token="0"))
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"a tokenizer of 331 tokens in .*, an embedding of 330 rows"):
        to_megatron(folder, tmp_path / "root", add_tokens=token_file(tmp_path, ["<|a|>"]))
