"""Products with a block-sparse matrix: dense, PyTorch's BSR, and STK where it is installed.

    python benches/peers/sparse.py [--json FILE] [--quick]
"""
import torch
from torch.nn import functional as F

from timing import Bench

bench = Bench(__doc__)
M, N, K, DENSITY = (64, 64, 64, 0.25) if bench.args.quick else (8192, 4096, 4096, 0.25)
DTYPE = torch.bfloat16


def inputs():
    return [bench.normal(M, K) for _ in range(bench.sets(2 * M * (N + K)))]


def masked(block):
    """A dense matrix in which exactly that share of the blocks is not zero, and how many they are."""
    rows, columns = N // block, K // block
    count = round(rows * columns * DENSITY)
    mask = torch.zeros(rows * columns, dtype=torch.bool)
    mask[torch.randperm(rows * columns)[:count]] = True
    mask = mask.view(rows, columns).repeat_interleave(block, 0).repeat_interleave(block, 1)
    return bench.normal(N, K) * mask.to(bench.device), count


def dense():
    weight, sets = bench.normal(N, K), inputs()
    return lambda turn: F.linear(sets[turn % len(sets)], weight)


def bsr(block):
    weight, sets = masked(block)[0].to_sparse_bsr((block, block)), inputs()
    return lambda turn: F.linear(sets[turn % len(sets)], weight)


def stk(block):
    import stk

    weight = stk.ops.to_sparse(masked(block)[0].t().contiguous(), block)
    sets = inputs()
    return lambda turn: stk.ops.dds(sets[turn % len(sets)], weight)


for block in (16, 32) if bench.args.quick else (16, 32, 64, 128):
    count = round((N // block) * (K // block) * DENSITY)
    shape = f"{M}x{N}x{K} b={block} {count} blocks"
    bench.row("block_sparse_linear", "forward", DTYPE, shape, "dense", dense)
    bench.row("block_sparse_linear", "forward", DTYPE, shape, "torch bsr", lambda: bsr(block))
    bench.row("block_sparse_linear", "forward", DTYPE, shape, "stk", lambda: stk(block))
bench.finish()
