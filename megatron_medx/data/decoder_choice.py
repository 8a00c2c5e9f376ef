"""The decoder that a run asks for by name."""

from megatron_medx.data.decoding import Decoder, PillowDecoder
from megatron_medx.data.patches import Patcher
from megatron_medx.errors import ConfigError


def make_decoder(name: str, patcher: Patcher) -> Decoder:
    """The decoder that `data.decoder` names: `pillow` or `dali`.

    Raises:
        ConfigError: no decoder has this name, or DALI is not installed.
    """
    if name == "pillow":
        return PillowDecoder(patcher)
    if name != "dali":
        raise ConfigError(f"data.decoder = {name!r}", "`pillow` or `dali`", "correct data.decoder")
    try:
        from megatron_medx.data.dali_decoder import DaliDecoder  # an optional dependency, and a second to import
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("nvidia"):
            raise
        raise ConfigError(
            "data.decoder = 'dali', but nvidia.dali is not installed",
            "NVIDIA DALI in this environment",
            "`pip install nvidia-dali-cuda130` (the extra `dali` of this package), or set data.decoder=pillow",
        ) from error
    return DaliDecoder(patcher)
