"""Dask arrays and frames on shoal: through ``client.compute``, and with shoal as dask's scheduler.

python examples/arrays.py [--workers N]
"""

from __future__ import annotations

import argparse
import os
import time

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd

from shoal import Client, LocalCluster


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    with LocalCluster(n_workers=options.workers, threads_per_worker=1) as cluster, Client(cluster) as client:
        started = time.perf_counter()
        points = da.random.default_rng(0).random((4_000_000, 2), chunks=(250_000, 2))
        inside = ((points**2).sum(axis=1) < 1).mean()
        pi = 4 * client.compute(inside).result()
        print(f"pi is about {pi:.4f} ({time.perf_counter() - started:.2f} s)")
        frame = pd.DataFrame({"name": np.arange(1_000_000) % 7, "value": np.arange(1_000_000)})
        with dask.config.set(scheduler=client.get):
            means = dd.from_pandas(frame, npartitions=16).groupby("name").value.mean().compute()
        print(means.sort_index())
        assert means.sort_index().equals(frame.groupby("name").value.mean())


if __name__ == "__main__":
    main()
