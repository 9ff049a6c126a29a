import json

import pytest

from benchmarks import engine_overhead


def test_the_overhead_is_measured_for_both_graphs_and_both_ways_to_run_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert engine_overhead.main(["--count", "4", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    cases = [(row["graph"], row["call"]) for row in results["rows"]]
    graphs, calls = ("products", "nothing"), ("run", "run into arrays")
    assert cases == [(graph, call) for graph in graphs for call in calls]
    first = results["rows"][0]
    assert first["share"] == first["seconds_added_median"] / first["onnxruntime_seconds_median"]
    assert all(
        row["seconds_added_lower_quartile"] <= row["seconds_added_median"]
        for row in results["rows"]
    )
    table = list(engine_overhead.describe(results))
    assert sum(line.startswith("| a graph") for line in table) == len(cases)
