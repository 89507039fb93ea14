"""Time of ``empirical_ntk`` against ``vmap(jacrev)`` contracted, and of products with a kernel that would not fit.

    python -m tests.benchmarks.bench_ntk

Both sides run interleaved in one process on one thread, from the user's module to the kernel [32, 32, 10, 10]; the
ratio of the median thread-CPU times is reported.
"""

import resource

import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

from mfoc.analysis.kernel import NTKOperator, empirical_ntk
from tests.benchmarks.timing import clock, device, interleaved, machine, quick, report


def convnet():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 256, 10),
    )  # fmt: skip


def by_jacrev(net, x):
    """torch.func's own recipe, "jacobian contraction"."""
    weights = {name: p.detach() for name, p in net.named_parameters()}

    def single(weights, sample):
        return functional_call(net, weights, (sample[None],)).squeeze(0)

    jacobian = vmap(jacrev(single), in_dims=(None, 0))(weights, x)
    leaves = [leaf.flatten(2) for leaf in jacobian.values()]
    return torch.stack([torch.einsum("Naf,Mbf->NMab", leaf, leaf) for leaf in leaves]).sum(0)


def main():
    torch.set_num_threads(1)
    torch.empty(8_000_000).fill_(0.0)  # as loading a data set does: glibc then keeps freed pages
    print(machine())
    if not quick():
        operator()
    kernel()


def operator():
    net, x = (
        nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 10)).to(device()),
        torch.randn(10_000, 10).to(device()),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    product = NTKOperator(net, x)
    start = clock()
    product @ torch.randn(10_000, 10).to(device())
    took = clock() - start
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"a product with the kernel of 10,000 points and 10 outputs (37 GiB): {took:.2f} s, {more:.0f} MiB more")


def kernel():
    torch.manual_seed(0)
    net, x = convnet().to(device()), torch.randn(32, 3, 16, 16).to(device())
    error = float((empirical_ntk(net, x) - by_jacrev(net, x)).abs().max() / by_jacrev(net, x).abs().max())
    sides = {"jacrev": lambda: by_jacrev(net, x), "mfoc": lambda: empirical_ntk(net, x)}
    found = interleaved(sides, rounds=7 if quick() else 15)
    print(f"largest difference {error:.1e}")
    name = "empirical NTK [32, 32, 10, 10] of a conv net"
    report(name, found.ratio("jacrev", "mfoc"), of="vmap(jacrev)", to="mfoc", headline=True)


if __name__ == "__main__":
    main()
