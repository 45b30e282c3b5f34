"""Several hosts, between which a link is cut: every rank ends in time and names whom it lost, and all resume.

What is cut gives no sign: where packets are swallowed no connection is closed, and nothing but silence tells.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ppar_dist import checkpoint
from tests.faults.hosts import Host, Ranks, leftovers, network, ranks_on, why_not
from tests.faults.jobs import tiny_run
from tests.ranks import read_lines
from tests.sabotage.pace import Pace

PEER_S, STALL_S, STEPS, EVERY = 3.0, 60.0, 60, 5
BOUND_S = PEER_S + 20  # a busy machine; the watchdog itself needs PEER_S and a few seconds to say so
SECTIONS = {
    "train": {"steps": STEPS, "global_batch": 6, "log_every": 1},
    "checkpoint": {"every": EVERY},
    "faults": {"peer_s": PEER_S, "stall_s": STALL_S},
}
STORE_LOST = r"rank 0 on 10\.77\.\d+\.1:\d+ cannot be reached by rank {rank} on {host} for \S+ s"


@pytest.fixture(scope="module", autouse=True)
def machine() -> Iterator[None]:
    """One that can play several hosts, and is left as it was found."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    yield
    assert not leftovers()


def peer_lost(host: str) -> str:
    """What a rank says that reaches the store and has lost another."""
    return rf"rank \d on {host} \(10\.77\.\d+\.\d+, pid \d+\) is silent for \S+ s"


def cut(
    hosts: list[Host], how: Callable[[Host], None], who: int, run: Path, config: str, logs: Path
) -> Ranks:
    """Train until a further checkpoint, cut a host off, and wait until all ranks have ended with 75 in time.

    The start resumes from the newest checkpoint there is. The link is restored at the end.
    """
    newest = checkpoint.find_checkpoint(run)
    before = step_of(newest)
    hold = Pace(run.with_name("hold"), step=before + EVERY, seconds=2)  # far from its end when it is cut
    command = ("-m", "tests.sabotage", hold.hold, "train", config)
    with ranks_on(hosts, logs, *command) as ranks:
        ranks.wait_for(lambda: step_of(checkpoint.find_checkpoint(run)) > before, "a further checkpoint")
        how(hosts[who])
        codes, seconds = ranks.wait()
    print(f"{len(hosts)} hosts, {how.__name__} {hosts[who].name}: {', '.join(f'{s:.1f} s' for s in seconds)}")
    assert codes == [75] * len(hosts), ranks.outputs()
    assert max(seconds) < BOUND_S, ranks.outputs()
    assert "Traceback" not in ranks.outputs()
    assert_resumed(ranks, newest)
    assert_whole(run)
    hosts[who].restore()
    return ranks


def step_of(found: Path | None) -> int:
    return 0 if found is None else checkpoint.step_of(found) or 0


def assert_resumed(ranks: Ranks, newest: Path | None) -> None:
    if newest is not None:
        assert f"resumed from {newest}, the newest whole checkpoint" in ranks.output(0), ranks.outputs()


def assert_whole(run: Path) -> None:
    """Every published checkpoint is whole, and so is the one that ``latest`` names."""
    published = checkpoint.list_checkpoints(run)
    assert [problem for folder in published for problem in checkpoint.verify(folder)] == []
    assert (run / "checkpoints" / "latest").read_text().strip() in {folder.name for folder in published}


def assert_finishes(hosts: list[Host], run: Path, config: str, logs: Path) -> None:
    """A last start goes on from the newest whole checkpoint, to the end, with every step and sample once."""
    newest = checkpoint.find_checkpoint(run)
    with ranks_on(hosts, logs, "-m", "ppar_dist", "train", config) as ranks:
        codes, _ = ranks.wait()
    assert codes == [0] * len(hosts), ranks.outputs()
    assert_resumed(ranks, newest)
    steps = [record["step"] for record in read_lines(run / "metrics" / "train.jsonl")]
    assert steps == list(range(1, STEPS + 1))
    state = checkpoint.read_state(run / "checkpoints" / checkpoint.checkpoint_name(STEPS))
    assert state["samples_seen"] == 6 * STEPS
    assert not [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]


def test_two_hosts_lose_each_other_in_three_ways_and_finish_all_the_same(
    blocks: Path, tmp_path: Path
) -> None:
    run, config = tiny_run(blocks, tmp_path, **SECTIONS)
    with network(2) as hosts:
        for how in (Host.swallow, Host.pull_cable, Host.take_down):
            ranks = cut(hosts, how, 1, run, config, tmp_path / how.__name__)
            assert re.search(peer_lost("beta"), ranks.verdict(0)), ranks.outputs()
            assert re.search(STORE_LOST.format(rank=1, host="beta"), ranks.verdict(1)), ranks.outputs()
        assert_finishes(hosts, run, config, tmp_path / "last")


def test_three_hosts_lose_one_then_the_one_that_has_the_store_and_writes_checkpoints(
    blocks: Path, tmp_path: Path
) -> None:
    run, config = tiny_run(blocks, tmp_path, **SECTIONS)
    with network(3) as hosts:
        ranks = cut(hosts, Host.swallow, 2, run, config, tmp_path / "one")
        for rank in (0, 1):  # they still reach each other, and agree
            assert re.search(peer_lost("gamma"), ranks.verdict(rank)), ranks.outputs()
        assert re.search(STORE_LOST.format(rank=2, host="gamma"), ranks.verdict(2)), ranks.outputs()
        ranks = cut(hosts, Host.swallow, 0, run, config, tmp_path / "main")
        alone = r"rank 0 on alpha has heard of no other rank for \S+ s .*: alpha is cut off, or all have died"
        assert re.search(alone, ranks.verdict(0)), ranks.outputs()
        for rank, host in ((1, "beta"), (2, "gamma")):
            assert re.search(STORE_LOST.format(rank=rank, host=host), ranks.verdict(rank)), ranks.outputs()
        assert_finishes(hosts, run, config, tmp_path / "last")


IMPATIENT = """
import sys
from ppar_dist.cli import parser
from ppar_dist.training import rank_job
rank_job._TIMEOUT_S = 5.0
sys.exit(parser.main(sys.argv[1:]))
"""


def test_a_job_that_is_started_while_the_link_is_still_cut_ends_to_be_started_again(
    blocks: Path, tmp_path: Path
) -> None:
    _, config = tiny_run(blocks, tmp_path, **SECTIONS | {"faults": {"stall_s": 1.0, "peer_s": 1.0}})
    with network(2) as hosts:
        hosts[1].swallow()
        with ranks_on(hosts, tmp_path / "logs", "-c", IMPATIENT, "train", config) as ranks:
            codes, _ = ranks.wait()
    assert codes == [75, 75], ranks.outputs()
    for rank, host in enumerate(("alpha", "beta")):
        expected = rf"rank {rank} of 2 on {host} did not meet the others at 10\.77\.\d+\.1:\d+ in \d+ s"
        assert re.search(expected, ranks.verdict(rank)), ranks.outputs()
    assert "Traceback" not in ranks.outputs()
