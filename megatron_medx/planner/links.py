"""Which ranks talk to one another along each axis, over which link, and how long a message takes.

Megatron numbers ranks in the order tensor, context, data, pipeline, and for experts expert, data, pipeline: the ranks
of a group lie `stride` apart. Slurm gives neighboring numbers to one node.
"""

from dataclasses import dataclass

from megatron_medx.config.run import RunConfig
from megatron_medx.planner.hardware import Hardware


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that take part in one collective."""

    size: int
    stride: int

    def in_node(self, gpus_per_node: int) -> int:
        """How many of them share a node: all where the group is as long as a node or shorter.

        Example (nodes of 8): 8 ranks 4 apart have 2 in a node, 4 ranks 8 apart 1, 4 ranks 2 apart all 4.
        """
        if self.size * self.stride <= gpus_per_node:
            return self.size
        return max(1, min(self.size, gpus_per_node // self.stride))


@dataclass(frozen=True, slots=True)
class Link:
    """What carries the messages of a group."""

    name: str
    bytes_per_s: float
    """That a rank of it sends, all ranks at once."""


def groups(config: RunConfig) -> dict[str, Group]:
    """The groups of every axis; a group of 1 sends nothing.

    `images` are the ranks that share the images of a row, `data` those that share gradients and optimizer states (with
    the context ranks, as Megatron has it), `expert data` the same of experts.
    """
    p = config.parallel
    of_stage = p.tensor * p.context * p.data
    return {
        "tensor": Group(p.tensor, 1),
        "context": Group(p.context, p.tensor),
        "images": Group(p.tensor * p.context, 1),
        "expert": Group(p.expert, 1),
        "pipeline": Group(p.pipeline, of_stage),
        "data": Group(p.context * p.data, p.tensor),
        "expert data": Group(of_stage // p.expert, p.expert),
    }


def link(group: Group, hardware: Hardware) -> Link:
    """What carries the messages of a group.

    Within a node NVLink. Across nodes a ring enters and leaves a node through the adapters of all its members there, so
    that g members in a node have g adapters, up to what NVLink carries.
    """
    members, node = group.in_node(hardware.gpus_per_node), hardware.gpus_per_node
    nvlink = hardware.nvlink * hardware.nvlink_bytes_per_s
    if group.size * group.stride <= node:
        return Link("NVLink", nvlink)
    adapters = members * hardware.infiniband * hardware.infiniband_bytes_per_s
    return Link(f"InfiniBand x {members}" if members > 1 else "InfiniBand", min(nvlink, adapters))


def ring_s(num_bytes: float, messages: int, group: Group, hardware: Hardware) -> float:
    """Seconds in which every rank of a group sends so many bytes of so many collectives or messages."""
    if group.size == 1 or not num_bytes:
        return 0.0
    return num_bytes / link(group, hardware).bytes_per_s + messages * hardware.message_s


def all_to_all_s(num_bytes: float, messages: int, group: Group, hardware: Hardware) -> float:
    """The same of all-to-alls, whose bytes leave a rank evenly for all others of the group.

    What leaves the node goes through the rank's own adapter, the rest over NVLink beside it.
    """
    if group.size == 1 or not num_bytes:
        return 0.0
    members = group.in_node(hardware.gpus_per_node)
    inside = num_bytes * (members - 1) / (group.size - 1) / (hardware.nvlink * hardware.nvlink_bytes_per_s)
    outside = (
        num_bytes * (group.size - members) / (group.size - 1) / (hardware.infiniband * hardware.infiniband_bytes_per_s)
    )
    return max(inside, outside) + messages * hardware.message_s
