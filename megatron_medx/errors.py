"""The four errors a person can cause and mend.

Each names the person who must act: whoever wrote the recipe, prepared the data, owns the
checkpoints, or asked for the grid. A message has three parts, in this order: what was found,
what is needed, what to do. The command line prints the message without a traceback and exits
with code 2; anything else that is raised is a defect of ours and keeps its traceback.
"""


class MedxError(Exception):
    """Base of the errors that a user can mend.

    Args:
        found: what there is, with names and numbers.
        needed: what there must be.
        do: the next thing to type or change.
    """

    def __init__(self, found: str, needed: str, do: str):
        self.found, self.needed, self.do = found, needed, do
        super().__init__(f"found:  {found}\nneeded: {needed}\ndo:     {do}")

    def __reduce__(self):
        return type(self), (self.found, self.needed, self.do)


class ConfigError(MedxError):
    """The recipe or an override is wrong."""


class DataError(MedxError):
    """A sample, an image or a tokenizer is not what training needs."""


class CheckpointError(MedxError):
    """A checkpoint or a Hugging Face directory cannot be read, written or matched."""


class ParallelismError(MedxError):
    """The grid does not fit the model or the machine."""
