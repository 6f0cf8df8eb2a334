"""Logs that engines printed, held against the predictions for the same models and flags."""

import pytest
from field_logs import LOGS, architecture, given

from kvcalc.logs.verdict import audit_start, read


def audited(row, log=None):
    start = read((line, False) for line in log or row["log"]).starts[-1]
    return audit_start(start, architecture(row["model"]), given(row))


@pytest.mark.parametrize("name", LOGS)
def test_a_published_log_agrees_or_its_cause_is_named(name):
    row = LOGS[name]
    found = audited(row)
    if "reason" in row:
        assert found.verdict == "disagrees"
        assert row["reason"] in found.reason
    else:
        assert [each for each in found.rows if each.verdict == "disagrees"] == []
        assert found.verdict == "agrees"
