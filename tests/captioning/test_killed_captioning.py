"""Jobs that are killed and repeated end as if nothing had happened; kill_captioning.py kills more by hand."""

from kill_captioning import kill_captioning


def test_a_killed_job_ends_with_the_same_file(tmp_path):
    outcomes = list(kill_captioning(tmp_path, count=3, seed=1))
    assert [outcome.equal for outcome in outcomes] == [True] * 3
    assert any(outcome.killed for outcome in outcomes)
