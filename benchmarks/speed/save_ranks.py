"""The cost of a checkpoint that N ranks write: how long each blocks, and what each writes.

    python -m benchmarks.speed.save_ranks --parameters 300e6 --ranks 3 --out /shared/storage [--other FOLDER]

Each rank trains a stack of linear layers by DeepSpeed ZeRO stage 1 and AdamW in fp32, one thread a rank, over
gloo; ``--frozen`` is the share of the parameters that is not trained, as of a frozen tower. FOLDER is a
checkout of a version whose rank 0 writes all (``git worktree add FOLDER 326a38a``): the two take turns.

* ``blocked``  the slowest rank's seconds from the call to the return: what training waits for
* ``writing``  from the first byte to the checkpoint's name
* ``first MB`` bytes of the first checkpoint, ``MB``: of the last one, by rank

Figures are medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parents[2]
SAVES = 3  # in a round; the first has nothing to link
_WIDTH = 2000  # of a layer: four million parameters each


def rank_main(parameters: int, frozen: float, run: Path) -> None:
    """One rank: a step, then saves; rank 0 prints what they cost as JSON."""
    import torch
    from torch import nn

    from ppar_dist.config.load import parse_config
    from ppar_dist.distributed import rendezvous
    from ppar_dist.training.engine import Engine

    torch.set_num_threads(1)
    world = rendezvous.join()
    tree = {
        "run": {"dir": str(run)},
        "data": {"root": str(run), "classes": "roads6", "sources": ["one"]},
        "model": {"backbone": {"kind": "timm", "name": "resnet18", "embed_dim": 8}},
        "text": {"file": "none.npz"},
        "train": {"steps": 10, "global_batch": world.world_size},
        "engine": {"zero_stage": 1},
    }
    layers = [nn.Linear(_WIDTH, _WIDTH, bias=False) for _ in range(max(1, parameters // _WIDTH**2))]
    for layer in layers[: int(frozen * len(layers))]:
        layer.requires_grad_(False)
    model = nn.Sequential(*layers)
    group = {"name": "all", "params": list(model.parameters()), "lr": 1e-4, "weight_decay": 0.0}
    engine = Engine(model, [group], parse_config(tree), world)
    engine.backward(engine.forward(torch.ones(1, _WIDTH)).square().mean(), last=True)
    engine.step(0)
    saves = [_save(engine, world, run, number) for number in range(1, SAVES + 1)]
    gathered = world.gather(saves)
    if world.is_main:
        print(json.dumps(gathered), flush=True)
    rendezvous.leave()


def _save(engine: Any, world: Any, run: Path, number: int) -> dict[str, float]:
    """One save of this rank, by this version's code or by an earlier one's."""
    from ppar_dist import checkpoint
    from ppar_dist.class_sets import class_set
    from ppar_dist.training import snapshot

    state = SimpleNamespace(step=number, to_json=dict)  # what a checkpoint asks for, but for the tensors
    objective = SimpleNamespace(state_dict=dict)
    learner: Any = SimpleNamespace(
        engine=engine, objective=objective, teacher=None, average=None, state=state
    )
    config = SimpleNamespace(train=SimpleNamespace(steps=10), model_dump=lambda mode: {})
    plan: Any = SimpleNamespace(config=config, facts=dict, classes=class_set("roads6"))
    joint: Any = ()
    world.barrier()
    began = time.monotonic()
    if hasattr(checkpoint, "JointSave"):
        if not hasattr(world, "_board"):
            from ppar_dist.distributed.board import open_board

            object.__setattr__(world, "_board", open_board(world))
            world.barrier()
            began = time.monotonic()
        earlier = checkpoint.list_checkpoints(run)
        copy = snapshot.snapshot(learner, plan, world, earlier[-1] if earlier else None)
        joint = (None, checkpoint.JointSave(world._board, world.rank, world.world_size, number, 600.0))
    else:
        copy = snapshot.snapshot(learner, plan, world)
    writer = checkpoint.Writer(run) if copy is not None else None
    if writer is not None:
        writer.submit(copy, *joint)
    blocked = time.monotonic() - began
    outcome = writer.finish() if writer is not None else None
    if outcome is not None and outcome.error:
        sys.exit(outcome.error)
    written = sum(
        value.numel() * value.element_size()
        for tensors in (copy.tensors.values() if copy is not None else ())
        for value in tensors.values()
    )
    if outcome is not None and outcome.folder is not None:
        others = checkpoint.read_manifest(outcome.folder)["files"]
        fresh = [name for name, entry in others.items() if "linked" not in entry]
        mine = [name for name in fresh if copy is not None and (name in copy.tensors or "frozen" in name)]
        written = sum(others[name]["bytes"] for name in mine)
    world.barrier()
    seconds = outcome.seconds if outcome is not None and world.is_main else 0.0
    return {"blocked": blocked, "writing": seconds, "MB": written / 1e6}


def measure(code: Path, options: argparse.Namespace, port: int) -> list[list[dict[str, float]]]:
    """Saves by rank, of the code of a checkout."""
    with tempfile.TemporaryDirectory(dir=options.out, prefix="save-ranks-") as run:
        processes = []
        for rank in range(options.ranks):
            environment = {
                **os.environ,
                **{"PYTHONPATH": str(code), "RANK": str(rank), "LOCAL_RANK": str(rank)},
                **{"WORLD_SIZE": str(options.ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
                **{"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            }
            inner = [
                "--rank-of",
                run,
                "--parameters",
                str(options.parameters),
                "--frozen",
                str(options.frozen),
            ]
            command = [sys.executable, str(Path(__file__).resolve()), *inner]
            pipe = subprocess.PIPE if rank == 0 else subprocess.DEVNULL
            processes.append(subprocess.Popen(command, env=environment, stdout=pipe, text=True))
        output = processes[0].communicate()[0]
        for process in processes[1:]:
            process.wait()
    if any(process.returncode for process in processes):
        sys.exit(f"{code}: a rank ended with {[process.returncode for process in processes]}")
    found: list[list[dict[str, float]]] = json.loads(output.splitlines()[-1])
    return found


def main() -> None:
    """Take turns between the versions, round by round."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=float, default=300e6)
    parser.add_argument("--frozen", type=float, default=0.0)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a folder on the storage to measure; default: temporary")
    parser.add_argument("--other", type=Path, help="a checkout of another version")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_of:
        rank_main(int(options.parameters), options.frozen, options.rank_of)
        return
    versions = {"this": HERE} | ({"other": options.other.resolve()} if options.other else {})
    rounds: dict[str, list[list[list[dict[str, float]]]]] = {name: [] for name in versions}
    for number in range(options.rounds):
        for turn, (name, code) in enumerate(versions.items()):
            rounds[name].append(measure(code, options, 23000 + 2 * number + turn))
    print("| version | blocked s | writing s | first MB by rank | MB by rank |\n|---|---|---|---|---|")
    for name, found in rounds.items():
        later = [saves[1:] for ranks in found for saves in [list(zip(*ranks, strict=True))]]
        blocked = statistics.median(max(r["blocked"] for r in save) for saves in later for save in saves)
        writing = statistics.median(save[0]["writing"] for saves in later for save in saves)
        first, last = (" ".join(f"{rank[at]['MB']:.0f}" for rank in found[0]) for at in (0, -1))
        print(f"| {name} | {blocked:.2f} | {writing:.1f} | {first} | {last} |")


if __name__ == "__main__":
    main()
