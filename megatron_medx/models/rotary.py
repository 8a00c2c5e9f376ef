"""Rotary angles: interleaved M-RoPE of the decoder, 2-D rotary and interpolated positions of the tower.

Pure functions of positions and grids; row_rotary.py turns queries and keys by them.
"""

import torch
from torch import Tensor


def mrope_angles(positions_3S: Tensor, head_dim: int, theta: float, section: tuple[int, int, int]) -> Tensor:
    """Angles of Qwen3-VL's interleaved M-RoPE.

    Frequency j turns with time, height or width in the order T H W T H W ...; height owns `section[1]` and width
    `section[2]` frequencies, time the rest. Example, head_dim 16, section (4, 2, 2): axes are T H W T H W T T.

    Args:
        positions_3S: (3, S) int64 positions along time, height, width.
        head_dim: size of a head; section sums to head_dim / 2.
        theta: rotary base.

    Returns:
        (S, 1, 1, head_dim) float32, the second half a copy of the first.

    Source: transformers Qwen3VLTextRotaryEmbedding (tests/parity).
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions_3S.device) / head_dim
    angles_3SD = positions_3S.float().unsqueeze(-1) * (1.0 / theta**exponents)
    angles_SD = angles_3SD[0].clone()
    for axis in (1, 2):
        turn = slice(axis, 3 * section[axis], 3)
        angles_SD[:, turn] = angles_3SD[axis, :, turn]
    return torch.cat((angles_SD, angles_SD), dim=-1)[:, None, None, :]


def patch_rows_and_columns(grids_I3: Tensor, merge_size: int) -> tuple[Tensor, Tensor]:
    """Row and column of every patch, in the order in which patches are stored: merge block by merge block.

    Example, one image of 2 x 4 patches, merge_size 2: rows 0 0 1 1 0 0 1 1, columns 0 1 0 1 2 3 2 3.

    Args:
        grids_I3: (I, 3) int64 frames, height and width of each image in patches; both sides multiples of merge_size.

    Returns:
        rows, columns: (P,) int64 each on the CPU, repeated for every frame.
    """
    rows, columns = [], []
    for frames, height, width in grids_I3.tolist():
        row = torch.arange(height)[:, None].expand(height, width)
        column = torch.arange(width)[None, :].expand(height, width)
        for values, axis in ((rows, row), (columns, column)):
            blocks = axis.reshape(height // merge_size, merge_size, width // merge_size, merge_size)
            values.append(blocks.transpose(1, 2).flatten().repeat(frames))
    return torch.cat(rows), torch.cat(columns)


def patch_angles(rows: Tensor, columns: Tensor, head_dim: int, theta: float = 10000.0) -> Tensor:
    """Angles of the tower's 2-D rotary embedding: a quarter of a head turns with the row, the next with the column.

    Args:
        rows, columns: (P,) int64.
        head_dim: size of a head, a multiple of 4.

    Returns:
        (P, 1, 1, head_dim) float32, the second half a copy of the first.

    Source: transformers Qwen3VLVisionRotaryEmbedding (tests/parity).
    """
    half = head_dim // 2
    exponents = torch.arange(0, half, 2, dtype=torch.float32, device=rows.device) / half
    frequencies = 1.0 / theta**exponents
    quarter = [axis.float().unsqueeze(-1) * frequencies for axis in (rows, columns)]
    return torch.cat((*quarter, *quarter), dim=-1)[:, None, None, :]


def interpolated_positions(table_NE: Tensor, grids_I3: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Learned square position grid, bilinearly resampled to each image's grid (corners aligned).

    Args:
        table_NE: (side^2, E) learned positions, row-major.
        grids_I3: (I, 3) int64 frames, height, width, on the CPU.
        rows, columns: (P,) int64 place of every patch in its image, on the CPU.

    Returns:
        (P, E) positions in the table's dtype.

    Source: transformers Qwen3VLVisionModel (tests/parity).
    """
    side = int(table_NE.shape[0] ** 0.5)
    num_patches = grids_I3.prod(dim=1)
    low, high, weight = [], [], []
    for place, size in ((rows, grids_I3[:, 1]), (columns, grids_I3[:, 2])):
        size_P = size.repeat_interleave(num_patches)
        at = place.float() * (side - 1) / (size_P - 1).clamp(min=1)
        floor = at.floor()
        low.append(floor.long())
        high.append((floor.long() + 1).clamp(max=side - 1))
        weight.append(at - floor)
    corners = torch.stack([row * side + column for row in (low[0], high[0]) for column in (low[1], high[1])], dim=1)
    weights = torch.stack([u * v for u in (1 - weight[0], weight[0]) for v in (1 - weight[1], weight[1])], dim=1)
    # embedding(), not table_NE[corners]: the backward pass of indexing adds in no fixed order, on the CPU too.
    corners_P4E = torch.nn.functional.embedding(corners.to(table_NE.device), table_NE)
    return (corners_P4E * weights.to(table_NE.device).unsqueeze(-1)).sum(1).to(table_NE.dtype)
