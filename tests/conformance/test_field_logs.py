"""Logs that engines printed, held against the predictions for the same models and flags."""

import pytest
from field_logs import LOGS, architecture, given

from kvcalc.logs.verdict import audit, read_log


def audited(row, log=None):
    run = read_log((line, False) for line in log or row["log"]).runs[-1]
    drafts = {row["draft"]: architecture(row["draft"])} if "draft" in row else {}
    return audit(run, architecture(row["model"]), given(row), drafts)


@pytest.mark.parametrize("name", LOGS)
def test_a_published_log_agrees_or_its_cause_is_named(name):
    row = LOGS[name]
    found = audited(row)
    if "reason" in row:
        assert not found.agrees
        assert row["reason"] in found.reason
    else:
        assert [each for each in found.rows if not each.agrees] == []
