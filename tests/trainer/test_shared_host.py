"""One copy of a streamed base in the host's memory, for all processes of a run."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from autoft.errors import ModelError
from autoft.trainer.model.shared_host import SharedHost
from autoft.units import MIB

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several GPUs need NCCL, and so Linux")

BORROWER = """
import json, sys
import torch
from pathlib import Path
from autoft.trainer.model.shared_host import SharedHost

def own_bytes():
    rows = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return {name: 1024 * int(rows[name].split()[0]) for name in ("Private_Dirty", "Shared_Dirty")}

before = own_bytes()
buffers = SharedHost(Path(sys.argv[1]), first=False).buffers("layers", json.loads(sys.argv[2]))
total = sum(int(buffer.sum(dtype=torch.int64)) for buffer in buffers)
after = own_bytes()
print(json.dumps({"sum": total, **{name: after[name] - before[name] for name in after}}), flush=True)
sys.stdin.read()
"""


def borrow(folder: Path, sizes: list[int]) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", BORROWER, str(folder), json.dumps(sizes)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_another_process_waits_for_it_and_has_no_copy_of_its_own(tmp_path) -> None:
    sizes = [5, 8 * MIB + 3, 0, 24 * MIB]
    lent = SharedHost(tmp_path, first=True)
    buffers = lent.buffers("layers", sizes)
    other = borrow(tmp_path, sizes)
    for number, buffer in enumerate(buffers):
        buffer.fill_(number + 1)
    assert not list(tmp_path.iterdir())
    lent.publish("layers", buffers)
    said = json.loads(other.stdout.readline())
    lent.close()
    assert said["sum"] == 1 * 5 + 2 * sizes[1] + 4 * sizes[3]
    assert said["Shared_Dirty"] >= sum(sizes)
    assert said["Private_Dirty"] < sum(sizes) / 4
    buffers[1][7] = 99  # still the same memory
    other.communicate("")
    assert other.returncode == 0


def test_pages_are_no_two_buffers_own(tmp_path) -> None:
    """Each is pinned by itself, and CUDA pins a page once."""
    first, second = SharedHost(tmp_path, first=True).buffers("layers", [10, 10])
    assert second.data_ptr() - first.data_ptr() == 4096


def test_another_model_is_refused(tmp_path) -> None:
    lent = SharedHost(tmp_path, first=True)
    lent.publish("layers", lent.buffers("layers", [10, 20]))
    with pytest.raises(ModelError, match="layers of the streamed base: not what the first process has"):
        SharedHost(tmp_path, first=False).buffers("layers", [10, 21])


def test_what_is_lent_for_a_time_goes_when_the_last_lets_go_of_it(tmp_path) -> None:
    lent = SharedHost(tmp_path, first=True)
    made = lent.buffers("for a time", [4 * MIB])
    made[0].fill_(3)
    lent.publish("for a time", made)
    taken = SharedHost(tmp_path, first=False).buffers("for a time", [4 * MIB])
    lent.close()
    del made
    assert int(taken[0].sum()) == 3 * 4 * MIB
    assert "for a time" in Path("/proc/self/maps").read_text()
    del taken
    assert "for a time" not in Path("/proc/self/maps").read_text()


def test_nothing_to_share_is_nothing(tmp_path) -> None:
    lent = SharedHost(tmp_path, first=True)
    empty = lent.buffers("embeddings", [])
    lent.publish("embeddings", empty)
    assert empty == SharedHost(tmp_path, first=False).buffers("embeddings", []) == []


def test_a_borrower_that_is_early_waits(tmp_path) -> None:
    made: list[torch.Tensor] = []
    early = threading.Thread(target=lambda: made.extend(SharedHost(tmp_path, first=False).buffers("layers", [8])))
    early.start()
    lent = SharedHost(tmp_path, first=True)
    buffers = lent.buffers("layers", [8])
    buffers[0].fill_(7)
    lent.publish("layers", buffers)
    early.join(20)
    assert made[0].tolist() == [7] * 8
