"""The page of templates and data is what its command makes: right or refused, in every cell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_of_templates_is_what_its_command_makes() -> None:
    """The command ends with an error where something else than the answers would be trained."""
    words = [sys.executable, str(ROOT / "docs" / "templates_table.py"), "--check"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr or "run make readme"
