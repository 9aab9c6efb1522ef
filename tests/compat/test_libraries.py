"""Libraries that know dask.distributed, with shoal in its place."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Run = Callable[..., str]


def test_joblib(run: Run) -> None:
    """Its dask backend: calls, errors, nested parallelism, scattered data."""
    pytest.importorskip("joblib")
    run(
        """
import joblib, numpy as np
from math import sqrt
from joblib import Parallel, delayed, parallel_config

data = np.arange(200_000)
def total(x, k): return int(x.sum()) + k
def nested(n): return sum(Parallel()(delayed(sqrt)(i * i) for i in range(n)))
with parallel_config(backend="dask"):
    assert Parallel()(delayed(sqrt)(i * i) for i in range(100)) == list(range(100))
    assert Parallel()(delayed(total)(data, k) for k in range(5)) == [int(data.sum()) + k for k in range(5)]
    assert Parallel()(delayed(nested)(n) for n in range(4)) == [0, 0, 1, 3]
    try:
        Parallel()(delayed(sqrt)(i) for i in [1, -1])
    except ValueError as error:
        assert "math domain" in str(error)
    else:
        raise AssertionError("no error")
with parallel_config(backend="dask", scatter=[data]):
    assert Parallel()(delayed(total)(data, k) for k in range(5)) == [int(data.sum()) + k for k in range(5)]
"""
    )


def test_scikit_learn(run: Run) -> None:
    """A grid search, and a forest."""
    pytest.importorskip("sklearn")
    told = run(
        """
import joblib
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC
X, y = load_digits(return_X_y=True)
X, y = X[:600], y[:600]
with joblib.parallel_config(backend="dask"):
    search = GridSearchCV(SVC(), {"C": [0.1, 1, 10], "gamma": [0.001, 0.01]}, cv=3).fit(X, y)
    forest = RandomForestClassifier(n_estimators=40, n_jobs=-1, random_state=0).fit(X, y)
assert search.best_score_ > 0.8, search.best_score_
assert forest.score(X, y) > 0.99
print(len(client.get_task_stream()) > 5)
"""
    )
    assert "True" in told


def test_xarray(run: Run) -> None:
    """Computed, persisted, written with a lock of the cluster's, groups and rolling windows."""
    pytest.importorskip("xarray")
    run(
        """
import dask.array as da, numpy as np, xarray as xr
from distributed.client import futures_of
data = xr.Dataset(
    {"a": (("time", "x"), da.random.default_rng(0).random((365, 40), chunks=(73, 20)))},
    coords={"time": np.arange("2001-01-01", "2002-01-01", dtype="datetime64[D]")},
)
assert 0.49 < float(data.a.mean()) < 0.51
months = data.groupby("time.month").mean().compute()
assert months.a.shape == (12, 40)
kept = (data * 2).persist()
assert len(futures_of(kept)) == 10
assert abs(float(kept.a.sum()) - 2 * float(data.a.sum())) < 1e-6
from xarray.backends import locks
assert locks.get_dask_scheduler() == "distributed", "its files are locked on the whole cluster"
assert data.rolling(time=5).mean().compute().a.shape == (365, 40)
assert xr.apply_ufunc(np.sqrt, data, dask="parallelized").compute().a.max() <= 1
"""
    )


@pytest.mark.heavy
def test_xgboost(run: Run) -> None:
    """Training on the cluster, prediction, and its estimators."""
    pytest.importorskip("xgboost")
    run(
        """
import dask.array as da, xgboost.dask as dxgb
rng = da.random.default_rng(0)
X = rng.random((4000, 5), chunks=(1000, 5))
y = (X[:, 0] + X[:, 1] > 1).astype(int)
matrix = dxgb.DaskDMatrix(client, X, y)
found = dxgb.train(client, {"objective": "binary:logistic"}, matrix, num_boost_round=20, evals=[(matrix, "train")])
assert found["history"]["train"]["logloss"][-1] < 0.1
guess = dxgb.predict(client, found, X)
assert ((guess > 0.5) == y).mean().compute() > 0.97
model = dxgb.DaskXGBClassifier(n_estimators=20)
model.client = client
model.fit(X, y)
assert (model.predict(X) == y).mean().compute() > 0.97
frame = __import__("dask.dataframe").dataframe.from_array(X, columns=list("abcde"))
regressor = dxgb.DaskXGBRegressor(n_estimators=10).fit(frame, frame.a + frame.b)
assert regressor.predict(frame).compute().shape == (4000,)
"""
    )


@pytest.mark.heavy
def test_lightgbm(run: Run) -> None:
    """Training on the cluster."""
    pytest.importorskip("lightgbm")
    run(
        """
import dask.array as da, lightgbm
rng = da.random.default_rng(0)
X = rng.random((4000, 5), chunks=(1000, 5))
y = (X[:, 0] + X[:, 1] > 1).astype(int)
model = lightgbm.DaskLGBMClassifier(n_estimators=20, client=client, verbose=-1).fit(X, y)
assert (model.predict(X) == y).mean().compute() > 0.95
"""
    )


@pytest.mark.heavy
def test_dask_ml(run: Run) -> None:
    """Clusters, searches, linear models."""
    pytest.importorskip("dask_ml")
    run(
        """
import warnings
warnings.simplefilter("ignore")
import dask.array as da, numpy as np
from dask_ml.cluster import KMeans
from dask_ml.linear_model import LogisticRegression
from dask_ml.model_selection import GridSearchCV, HyperbandSearchCV, IncrementalSearchCV
from sklearn.linear_model import SGDClassifier
from sklearn.svm import SVC
rng = da.random.default_rng(0)
X = rng.random((2000, 5), chunks=(500, 5))
y = (X[:, 0] + X[:, 1] > 1).astype(int)
assert KMeans(n_clusters=3, random_state=0).fit(X).cluster_centers_.shape == (3, 5)
search = GridSearchCV(SVC(), {"C": [0.1, 1.0]}, cv=2).fit(X[:400].compute(), y[:400].compute())
assert search.best_score_ > 0.8
grid = {"alpha": np.logspace(-4, -1, 4)}
found = IncrementalSearchCV(SGDClassifier(), grid, n_initial_parameters=4, max_iter=5, random_state=0, decay_rate=None)
found.fit(X, y, classes=[0, 1])
assert found.best_score_ > 0.6
band = HyperbandSearchCV(SGDClassifier(), grid, max_iter=9, random_state=0).fit(X, y, classes=[0, 1])
assert band.best_score_ > 0.6
assert LogisticRegression(solver="gradient_descent").fit(X, y).score(X, y) > 0.8
"""
    )
