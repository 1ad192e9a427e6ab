"""How a program begins."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

AUTOGROUP = Path("/proc/self/autogroup")
GROUPED = AUTOGROUP.exists() and AUTOGROUP.read_text() != ""
"""Whether this kernel groups processes by session. On some kernels the file is empty."""
GIVE_WAY = """
import os
from pathlib import Path
from activities.program import give_way
give_way(3, 5)
print(os.nice(0), Path("/proc/self/autogroup").read_text())
"""


@pytest.mark.skipif(not GROUPED, reason="this kernel does not group processes by session")
@pytest.mark.parametrize("own_session", [True, False], ids=["own session", "session of others"])
def test_a_program_that_gives_way_makes_only_its_own_session_nicer(own_session: bool) -> None:
    """Otherwise the niceness would not count against programs of other sessions, or other programs would give way, too."""
    before = AUTOGROUP.read_text().split()[-1]
    nice = os.nice(0)
    output = subprocess.run(
        [sys.executable, "-c", GIVE_WAY], start_new_session=own_session, capture_output=True, text=True, check=True
    ).stdout
    assert output.split()[0] == str(nice + 3)
    assert output.split()[-1] == ("5" if own_session else before)
