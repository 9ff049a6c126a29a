"""What the plans of the stand-in of TensorRT compute, and what they are run with."""

from __future__ import annotations

import numpy as np

GRAPH = """<ir_version: 8, opset_import: ["": 20]>
g (float[b, n, 3] x, int64[b] t) => (float[b, n, 4] y, float[b, k, 1] z)
<float[3, 4] W = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}>
{
    one = Constant <value_ints = [1]> ()
    axes = Constant <value_ints = [1, 2]> ()
    p = MatMul (x, W)
    s = Cast <to = 1> (t)
    u = Unsqueeze (s, axes)
    y = Add (p, u)
    z = ReduceSum (x, axes)
}"""


def make_feeds(batch=2, length=3, seed=0):
    random = np.random.default_rng(seed)
    return {
        "x": random.standard_normal((batch, length, 3)).astype(np.float32),
        "t": random.integers(0, 9, batch),
    }


def find_expected(feeds):
    weight = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    y = feeds["x"] @ weight + feeds["t"].astype(np.float32)[:, None, None]
    return {"y": y, "z": feeds["x"].sum((1, 2), keepdims=True)}


def check_run(engine, feeds, outputs=None):
    results = engine.run(feeds, outputs)
    expected = find_expected(feeds)
    assert list(results) == list(expected)
    for name, array in results.items():
        # Two libraries sum twelve numbers in another order.
        np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-5)
    return results
