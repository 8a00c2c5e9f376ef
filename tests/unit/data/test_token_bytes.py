"""How many bytes a token spells."""

from transformers import AutoTokenizer

from megatron_medx.data.token_bytes import token_bytes


def test_the_bytes_of_a_texts_tokens_are_those_of_the_text(demo):
    tokenizer = AutoTokenizer.from_pretrained(demo / "processor")
    num_bytes = token_bytes(tokenizer)
    assert len(num_bytes) == len(tokenizer)
    for text in ("X-ray", " of the left femur.\n\n", "Köhler's naïve 日本 🩻", "<think>12</think>"):
        assert int(num_bytes[tokenizer(text)["input_ids"]].sum()) == len(text.encode())


def test_special_tokens_spell_nothing(demo):
    tokenizer = AutoTokenizer.from_pretrained(demo / "processor")
    num_bytes = token_bytes(tokenizer)
    assert {int(num_bytes[token]) for token in tokenizer.all_special_ids} == {0}
    assert int((num_bytes == 0).sum()) == len(tokenizer.all_special_ids)
