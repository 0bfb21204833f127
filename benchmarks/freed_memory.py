"""What it takes a measurement to get its memory anew from the system, behind steps of a training with small tensors.

    python benchmarks/freed_memory.py [--threads 2] [--repeats 9]

Two processes in alternation: in one of them nothing is done about it. Prints what the other takes in proportion, and
the memory that each fetched, page by page, in one call.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
from multiprocessing.connection import Connection

import torch
from models import PreActResNet18, mlp
from timing import ratio, seconds
from torch import nn

from lc_callback.functional import local_complexity, robust_accuracy
from lc_callback.isolation import context

MEASURES = ("LC by vertices", "LC, linear", "accuracy under PGD")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {args.threads} thread(s), median of {args.repeats} alternating repeats")
    for network, batch in (("MLP", 128), ("MLP", 512), ("ResNet", 32), ("ResNet", 128)):
        for measure in MEASURES:
            compare(network, batch, measure, args.threads, args.repeats)


def compare(network: str, batch: int, measure: str, threads: int, repeats: int) -> None:
    """Print one line."""
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(2)]
    workers = [
        context.Process(target=work, args=(theirs, network, batch, measure, threads, helped))
        for (_, theirs), helped in zip(pairs, (False, True), strict=True)
    ]
    for worker in workers:
        worker.start()
    taken: list[list[tuple[float, float]]] = [[], []]
    for _ in range(repeats):
        for (ours, _), own in zip(pairs, taken, strict=True):
            ours.send(True)
            own.append(ours.recv())
    for (ours, _), worker in zip(pairs, workers, strict=True):
        ours.send(False)
        worker.join()
    (plain, plain_mb), (helped, helped_mb) = (zip(*own, strict=True) for own in taken)
    mb = f"{statistics.median(plain_mb):.0f} -> {statistics.median(helped_mb):.0f} MB"
    print(f"{network}, batches of {batch}, {measure}: {ratio(helped, plain):.2f}, {mb}", flush=True)


def work(pipe: Connection, network: str, batch: int, measure: str, threads: int, helped: bool) -> None:
    """Two steps and a measurement whenever asked; answers its seconds, and the MB that were fetched."""
    if not helped:
        context._keep_what_is_freed = lambda: None  # type: ignore[assignment]
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net, shape, points = (
        (mlp(784, 200, 200, 200, 10), (1, 28, 28), torch.rand(1000, 1, 28, 28))
        if network == "MLP"
        else (PreActResNet18(16), (3, 32, 32), torch.rand(64, 3, 32, 32))
    )
    labels = net(points).argmax(-1)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-6)
    images, targets = torch.rand(batch, *shape), torch.randint(0, 10, (batch,))

    def measured() -> None:
        if measure == "accuracy under PGD":
            robust_accuracy(net, points, labels, eps=0.01)
        else:
            local_complexity(net, points, radius=0.05, method="linear" if "linear" in measure else "vertices")

    measured()
    while pipe.recv():
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), targets).backward()
            optimizer.step()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        time = seconds(measured)
        pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        pipe.send((time, pages * resource.getpagesize() / 1e6))


if __name__ == "__main__":
    main()
