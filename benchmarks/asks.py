"""How long 1,000 asks take: each oracle on a whole space, told a score after each ask.

python benchmarks/asks.py [--asks 1000] [ORACLE ...]
"""

from __future__ import annotations

import argparse
import math
import random
import time

from cnn_search import backend

backend.prepare(1)
backend.load()

from cnn_search.definition import OracleTable  # noqa: E402
from cnn_search.oracles import Oracle  # noqa: E402
from cnn_search.training import Protocol, find_space  # noqa: E402

SHAPE, CLASSES, IMAGES = (32, 32, 3), 10, 45_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("oracles", nargs="*", metavar="ORACLE", default=["random", "grid", "tpe"])
    parser.add_argument("--asks", type=int, default=1000)
    options = parser.parse_args()
    space = find_space("cifar10")(SHAPE, CLASSES, IMAGES, Protocol(epochs=10)).hyperparameters()
    print(f"{len(space.space)} hyperparameters of cifar10, {options.asks:,} asks")
    for kind in options.oracles:
        over = ["depth"] if kind == "grid" else []
        table = OracleTable(kind=kind, over=over)
        oracle = Oracle(
            table, space, objective="val_accuracy", epochs=10, trials=options.asks, seed=1
        )
        drawn = random.Random(1)
        marks, began = [], time.perf_counter()
        for number in range(options.asks):
            ask = oracle.ask(number)
            if ask is None:
                print(f"{kind}: nothing left after {number} asks")
                break
            oracle.tell(number, ask.values, drawn.random())
            if number + 1 in (options.asks // 10, options.asks):
                marks.append(f"{time.perf_counter() - began:.1f} s after {number + 1:,}")
        else:
            each = 1000 * (time.perf_counter() - began) / options.asks
            print(f"{kind}: {', '.join(marks)}; {math.ceil(each)} ms an ask", flush=True)


if __name__ == "__main__":
    main()
