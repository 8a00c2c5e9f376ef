"""What the TRL examples share: a made-up reading task, a viewer whose tool zooms in, settings of a short run.

Pictures have one bright spot and are drawn here, so that the examples need no data. A picture is a stand-in for a
radiograph, the spot for a nodule: which half holds it is the answer.
"""

import random

import torch
from PIL import Image, ImageDraw

SHORT_RUN = {
    "logging_steps": 1,
    "save_strategy": "no",  # but for the end
    "gradient_checkpointing": False,  # a small model: memory is not what is short
    "report_to": "none",
    "disable_tqdm": True,
    "bf16": torch.cuda.is_available(),
}
"""Settings of a trainer that has nothing to do with what an example shows."""

QUESTION = "Which half holds the bright spot? Answer left or right."
SIDES = ("left", "right")
WIDTH_PX, HEIGHT_PX = 128, 96


def draw(seed: int) -> tuple[Image.Image, str]:
    """Return a gray picture with a bright spot, and the side on which the spot is."""
    chance = random.Random(seed)
    side = chance.choice(SIDES)
    left = chance.randrange(8, WIDTH_PX // 2 - 24) + (WIDTH_PX // 2 if side == "right" else 0)
    top = chance.randrange(8, HEIGHT_PX - 24)
    picture = Image.new("RGB", (WIDTH_PX, HEIGHT_PX), (60, 60, 60))
    ImageDraw.Draw(picture).ellipse((left, top, left + 16, top + 16), fill=(230, 230, 230))
    return picture, side


def task(num_pictures: int) -> list[dict]:
    """Return rows of `image`, `prompt` (a conversation of one turn) and `side` (the answer)."""
    rows = []
    for seed in range(num_pictures):
        image, side = draw(seed)
        rows.append({"image": image, "prompt": [{"role": "user", "content": QUESTION}], "side": side})
    return rows


class Viewer:
    """What the model acts in, as TRL's GRPOTrainer wants it: `reset` receives a row, `zoom` is a tool."""

    def reset(self, image: Image.Image, side: str, **row) -> None:
        """Take the picture of an episode and the side that holds its spot."""
        self._image, self._side, self._looked_at = image, side, set()

    def zoom(self, side: str) -> list[dict]:
        """Look closer at one half of the picture.

        Args:
            side: left or right
        """
        if side not in SIDES:
            raise ValueError(f"side is {side!r}, not left or right")
        width, height = self._image.size
        start = 0 if side == "left" else width // 2
        self._looked_at.add(side)
        crop = self._image.crop((start, 0, start + width // 2, height))
        return [{"type": "image", "image": crop}, {"type": "text", "text": f"the {side} half"}]

    def get_reward(self) -> float:
        """Reward 0.5 for having looked at the half that holds the spot."""
        return 0.5 * (self._side in self._looked_at)


def right_side(completions: list[list[dict]], side: list[str], **columns) -> list[float]:
    """Reward 1 where the last turn of an episode is the side that holds the spot, else 0."""
    return [float(_last_words(turns) == answer) for turns, answer in zip(completions, side, strict=True)]


def few_words(completions: list[list[dict]], **columns) -> list[float]:
    """Reward 0.5 for no more than the answer itself; falls with every character that an episode's last turn has more.

    It tells episodes apart that are all wrong, so that also an untrained model has something to learn from.
    """
    return [0.5 / (1 + 0.1 * max(0, len(_last_words(turns)) - len("right"))) for turns in completions]


def _last_words(turns: list[dict]) -> str:
    """The text of the last turn; a turn of the tool is not the model's and counts as silence."""
    content = turns[-1].get("content") or ""
    return content.strip(" .\n").lower() if turns[-1]["role"] == "assistant" and isinstance(content, str) else ""
