"""The tools that tell what a machine holds, and how cost grows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx2
from PIL import Image

from deploy.stack import Stack

ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith("SITELINK_")}


def cells_of(text: str) -> dict[str, list[str]]:
    """The rows of all tables, by their first cell; of several with the same, the last."""
    rows = ([cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line.startswith("|"))
    return {first: rest for first, *rest in rows}


def test_load_tool_measures_a_running_stack(stack: Stack) -> None:
    """Every upload ends, every client reads events, no request fails, and the uploads are deleted."""
    environ = ENVIRON | {"SITELINK_URL": stack.api_url}
    command = [sys.executable, "-m", "tests.bench.load", "--uploads", "2", "--clients", "5", "--seconds", "3", "--sheets", "2"]
    done = subprocess.run(
        [*command, "--inches", "3x2", "--to", "local/load/test"], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = cells_of(done.stdout)
    assert "none" in rows
    ended, of = rows["uploads that ended"][0].split(" of ")
    assert ended == of
    assert re.fullmatch(r"\d, at most [3-7]", rows["clients held"][0])  # five clients and one for each of two uploads, if at the same time
    assert int(rows["GET events, to the first event"][0]) >= 7
    assert int(rows["events that clients read"][0].replace(",", "")) >= 7
    assert int(rows["DELETE upload"][0]) == int(of)
    assert {"api", "worker-tile", "worker-workflow", "temporal"} <= rows.keys()
    listed = httpx2.get(f"{stack.api_url}/v1/organizations/local/projects/load/plans/test/uploads", timeout=60)
    assert listed.json()["uploads"] == []


def test_growth_is_measured_and_drawn(tmp_path: Path, temporal_binary: Path) -> None:
    """Each row has a cost for each size, and sizes of an earlier call are kept."""
    command = [sys.executable, "-m", "tests.bench.bench_growth", "--directory", str(tmp_path), "--json", str(tmp_path / "growth.json")]
    stored = ["--stored", "1,4", "--watched", "0.1", "--pages", ""]
    pages = ["--stored", "", "--pages", "1,2", "--png", str(tmp_path / "growth.png")]
    for arguments in (stored, pages):
        done = subprocess.run([*command, *arguments], env=ENVIRON, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    rows = cells_of(done.stdout)
    assert rows["runs in Temporal"][:2] == ["1", "4"]
    assert rows["runs (continued as new)"][:2] == ["1", "1"]
    for name in ("list: 50 newest", "nightly sweep", "delete an upload", "one upload, to its end"):
        assert all(re.fullmatch(r"[\d.e-]+ s, [\d.e-]+ CPU", cell) for cell in rows[name][:2]), rows[name]
    with Image.open(tmp_path / "growth.png") as image:
        assert image.getbbox() is not None
