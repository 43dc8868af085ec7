"""Jobs that are killed and repeated end as if nothing had happened; kill_captioning.py kills more by hand."""

import importlib.util

from kill_captioning import kill_captioning


def test_a_killed_job_ends_with_the_same_files(tmp_path):
    outputs = ["lines", "csv", "parquet", "sidecars"]
    if importlib.util.find_spec("pyexiv2"):
        outputs.append("xmp")
    outcomes = list(kill_captioning(tmp_path, count=1, seed=1, outputs=outputs))
    assert [outcome.equal for outcome in outcomes] == [True] * len(outputs)
    assert any(outcome.killed for outcome in outcomes)
