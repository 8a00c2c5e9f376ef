"""LLaVA's records as records of the schema: one field for the images, `<image>` where they stand in the text."""

from megatron_medx.data.samples import NOTES

IMAGE_WORD = "<image>"
"""Stands in LLaVA's text where an image belongs."""

ROLE_OF_SPEAKER = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def to_schema(raw: dict, fallback_id: str) -> dict:
    """The record of one raw entry: LLaVA's are converted, others are returned as they are.

    LLaVA's own ids may be numbers; an entry without one gets `fallback_id`. Images that no `<image>` stands for come
    in front of the first human turn, if there is no `<image>` at all. Fields that the schema does not have are left
    out.

    Example: {"id": 7, "image": "a.png", "conversations": [{"from": "human", "value": "<image>\\nWhat?"}, ...]} ->
    {"id": "7", "messages": [{"role": "user", "content": [image a.png, text What?]}, ...]}

    Raises:
        ValueError(found, needed): the entry is not of LLaVA's form either.
    """
    if "conversations" not in raw or "messages" in raw:
        return raw
    turns, images = raw["conversations"], raw.get("image")
    images = [images] if isinstance(images, str) else list(images or [])
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("conversations of another form", 'a list of {"from": ..., "value": ...}')
    texts = [turn.get("value") for turn in turns]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a turn without a text as value", 'turns as {"from": ..., "value": ...}')
    num_words = sum(text.count(IMAGE_WORD) for text in texts)
    if images and not num_words:
        first = next((k for k, turn in enumerate(turns) if ROLE_OF_SPEAKER.get(turn.get("from")) == "user"), 0)
        texts[first] = f"{IMAGE_WORD}\n" * len(images) + texts[first]
    elif num_words != len(images):
        raise ValueError(f"{num_words} times {IMAGE_WORD}, {len(images)} images", f"one {IMAGE_WORD} for each image")
    waiting = iter(images)
    messages = []
    for turn, text in zip(turns, texts, strict=True):
        speaker = turn.get("from")
        if not isinstance(speaker, str) or speaker not in ROLE_OF_SPEAKER:
            raise ValueError(f"a turn from {speaker!r}", f"from one of {', '.join(ROLE_OF_SPEAKER)}")
        messages.append({"role": ROLE_OF_SPEAKER[speaker], "content": _parts(text, waiting)})
    sample_id = raw.get("id")
    record = {"id": fallback_id if sample_id is None else str(sample_id), "messages": messages}
    return record | {name: raw[name] for name in (*NOTES, "choice", "metadata") if raw.get(name) is not None}


def _parts(text: str, waiting) -> list[dict]:
    parts = []
    for index, piece in enumerate(text.split(IMAGE_WORD)):
        if index:
            parts.append({"type": "image", "image": next(waiting)})
            piece = piece.removeprefix("\n")
        if piece.strip():
            parts.append({"type": "text", "text": piece})
    return parts
