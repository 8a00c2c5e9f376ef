"""Keys and bytes of WebDataset tars."""

import io
import tarfile

from megatron_medx.data.builder.tar_shards import END_OF_TAR, MAX_KEY_CHARS, member_suffix, pack_sample, sample_key


def test_keys_are_safe_and_differ():
    ids = ["a", "a.b", "a_b", "a/b", "A", "-", "__x__", "x" * 72, "x" * 73, "x" * 74, "日本", "日木", "\ud800"]
    keys = [sample_key(sample_id) for sample_id in ids]
    assert keys[:3] == ["a", keys[1], "a_b"] and keys[1].startswith("a_b-") and len(keys[1]) == 16
    assert len(set(keys)) == len(ids)
    for key in keys:
        assert 0 < len(key) <= MAX_KEY_CHARS and not key.startswith("__")
        assert all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in key)


def test_members_lie_where_they_are_said_to():
    files = [("json", b"{}"), ("0.png", b""), ("1.dcm", bytes(512)), ("2.img", b"x" * 513)]
    packed = pack_sample("key", files)
    assert [size for _, _, size in packed.members] == [2, 0, 512, 513] and len(packed.content) == 4 * 512 + 2048
    with tarfile.open(fileobj=io.BytesIO(packed.content + END_OF_TAR)) as tar:
        found = [(member.name, member.offset_data, member.size) for member in tar]
        assert found == packed.members
        assert [tar.extractfile(f"key.{name}").read() for name, _ in files] == [content for _, content in files]


def test_suffix_is_of_the_content():
    assert member_suffix(bytes(128) + b"DICM") == "dcm"
    assert member_suffix(b"RIFF1234WEBPVP8 ") == "webp"
    assert member_suffix(b"\xff\xd8\xff\xe0") == "jpg" and member_suffix(b"GIF89a") == "img"
