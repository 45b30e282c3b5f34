"""A process on a pretended device: reads cases as JSON, runs them and prints what each did, a line a case.

Started by ``tests.gpu.pretended.run_cases``; a case is a configuration and what is to be done with it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

os.environ |= {"DS_ACCELERATOR": "cuda", "LOCAL_RANK": "0", "DS_LOG_LEVEL": "error"}

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from ppar_dist.config.load import load_config
from ppar_dist.models.segmentor import build_segmentor
from ppar_dist.training import learner
from ppar_dist.training.plan import make_plan
from tests.gpu import actions
from tests.gpu.probe import PretendedDevice, patch_torch
from tests.gpu.rank import DEVICE, Rank


def run(case: dict[str, Any], probe: PretendedDevice) -> dict[str, Any]:
    """Run one case; what it did, by the name of what was done."""
    config = load_config(Path(case["config"]), case["overrides"])
    plan = make_plan(config, case["ranks"])
    with FakeTensorMode(allow_non_fake_inputs=False), probe:
        rank = Rank(plan, case["ranks"], probe)
        trained = sum(p.requires_grad for p in rank.learner.engine.module.parameters())
        built = {
            "held": probe.held - rank.before,
            "micro_batch": plan.batching.micro_batch,
            "trained": trained,
        }
        done: dict[str, Any] = {"built": built}
        if "fault" in case:
            actions.fault(rank, case["fault"])
        for action in case["actions"]:
            done |= getattr(actions, action)(rank)
    return done


def _on_device(plan_config: Any, classes: Any, load_weights: bool = True) -> Any:
    """`build_segmentor` without files: weights and text of no content, on the device."""
    segmentor, _ = build_segmentor(plan_config, classes, load_weights=False)
    return segmentor.to(DEVICE), torch.randn(classes.num_classes, segmentor.backbone.embed_dim)


def main() -> None:
    """Run the cases of standard input."""
    logging.disable(logging.WARNING)
    probe = PretendedDevice()
    patch_torch(probe)
    learner.build_segmentor = _on_device
    cases = json.load(sys.stdin)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=cases[0]["ranks"])
    for case in cases:
        probe.reset()
        probe.finite, probe.phase = True, ""
        try:
            answer = run(case, probe)
        except Exception as error:
            at = traceback.format_exc()
            answer = {"error": f"{type(error).__name__}: {error}", "traceback": at}
        print(json.dumps({"case": case["name"]} | answer), flush=True)


if __name__ == "__main__":
    main()
