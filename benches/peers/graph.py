"""Sums over the neighbours of a graph's nodes: PyTorch's sparse product, gather and scatter, and cuSPARSE through CuPy.

    python benches/peers/graph.py [--json FILE] [--quick]
"""
import torch

from timing import Bench

bench = Bench(__doc__)
NODES, DEGREE, FEATURES = (500, 8, 64) if bench.args.quick else (2_000_000, 16, 128)
SHAPE = f"{NODES}x{NODES} deg={DEGREE} f={FEATURES} h=1"


def edges():
    """Every node hears `DEGREE` others: offsets, and whom."""
    offsets = torch.arange(0, NODES * DEGREE + 1, DEGREE, device=bench.device)
    sources = torch.randint(NODES, (NODES, DEGREE), device=bench.device).sort(1).values.flatten()
    return offsets, sources


def matrix(dtype):
    offsets, sources = edges()
    weights = torch.randn(len(sources), device=bench.device, dtype=dtype)
    return torch.sparse_csr_tensor(offsets, sources, weights, (NODES, NODES))


def sparse(dtype):
    a, x = matrix(dtype), bench.normal(NODES, FEATURES, dtype=dtype)
    return lambda _: a @ x


def sparse_both(dtype):
    a, x = matrix(dtype).requires_grad_(True), bench.normal(NODES, FEATURES, dtype=dtype, grad=True)
    dy = bench.normal(NODES, FEATURES, dtype=dtype)

    def call(_):
        torch.sparse.mm(a, x).backward(dy)
        a.grad = x.grad = None

    return call


def scatter(dtype, reduce):
    offsets, sources = edges()
    targets = torch.arange(NODES, device=bench.device).repeat_interleave(DEGREE)
    weights = torch.randn(len(sources), 1, device=bench.device, dtype=dtype)
    x = bench.normal(NODES, FEATURES, dtype=dtype)

    def call(_):
        messages = x[sources] * weights
        out = torch.zeros(NODES, FEATURES, device=bench.device, dtype=dtype)
        return out.scatter_reduce_(0, targets[:, None].expand_as(messages), messages, reduce, include_self=False)

    return call


def cusparse():
    import cupy
    import cupyx.cusparse
    from cupyx.scipy.sparse import csr_matrix

    offsets, sources = edges()
    weights = cupy.random.standard_normal(len(sources), dtype=cupy.float32)
    at = (weights, cupy.asarray(sources).astype(cupy.int32), cupy.asarray(offsets).astype(cupy.int32))
    a, x = csr_matrix(at, (NODES, NODES)), cupy.asfortranarray(cupy.random.standard_normal((NODES, FEATURES), dtype=cupy.float32))
    stream = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)

    def call(_):
        with stream:
            return cupyx.cusparse.spmm(a, x)

    return call


for dtype in (torch.float32, torch.bfloat16):
    bench.row("spmm_sum", "forward", dtype, SHAPE, "torch csr", lambda: sparse(dtype))
    bench.row("spmm_sum", "both", dtype, SHAPE, "torch csr", lambda: sparse_both(dtype))
    for op, reduce in (("spmm_sum", "sum"), ("spmm_mean", "mean"), ("spmm_max", "amax")):
        bench.row(op, "forward", dtype, SHAPE, "gather, scatter", lambda: scatter(dtype, reduce))
bench.row("spmm_sum", "forward", torch.float32, SHAPE, "cusparse", cusparse)
bench.finish()
