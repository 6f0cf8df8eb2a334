"""Every recorded figure says where it comes from, and none changes without anybody saying so."""

import re
from hashlib import sha256
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DATA = TESTS / "data"
#: file, what, from, made by, checksum
ROWS = re.findall(
    r"^\| ([\w.]+) \| (.+?) \| (.+?) \| (.+?) \| `(\w{12})` \|$", (DATA / "README.md").read_text("utf-8"), re.MULTILINE
)


def test_every_file_has_one_row():
    assert sorted(row[0] for row in ROWS) == sorted(path.name for path in DATA.iterdir() if path.name != "README.md")


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_file_is_the_one_that_its_row_describes(row):
    name, _, source, made_by, checksum = row
    assert sha256((DATA / name).read_bytes()).hexdigest()[:12] == checksum, "changed: its row says from what"
    assert source.strip() and made_by.strip()
    for script in re.findall(r"tests/[\w/]+\.py", made_by):
        assert (TESTS.parent / script).is_file()
