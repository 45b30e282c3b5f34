"""What the controllers of Kubernetes and JobSet make of a pod that has ended, after their documentation."""

from __future__ import annotations

import re

from tests.cluster.pods_manifests import Manifest, container, jobs

KILLED = 137


def decision(job: Manifest, code: int, disrupted: bool = False) -> tuple[str, str]:
    """What the Job controller makes of a pod that ended with ``code``, and the message of its condition."""
    name = container(job)["name"]
    for index, rule in enumerate(job["spec"]["podFailurePolicy"]["rules"]):
        codes = rule.get("onExitCodes", {"values": ()})
        conditions = rule.get("onPodConditions", [])
        why = None
        if code in codes["values"] and (codes["operator"], codes["containerName"]) == ("In", name):
            why = f"Container {name} for pod ppar/x failed with exit code {code}"
        elif disrupted and {"type": "DisruptionTarget", "status": "True"} in conditions:
            why = "Pod ppar/x has condition DisruptionTarget"
        if why is not None:
            return rule["action"], f"{why} matching {rule['action']} rule at index {index}"
    return "Count", ""


def jobset_decision(jobset: Manifest, code: int, disrupted: bool = False) -> str:
    """What the JobSet controller makes of it."""
    (job,) = jobs([jobset])
    action, message = decision(job, code, disrupted)
    assert action != "Ignore", "half of the pods would be started again"
    assert job["spec"]["backoffLimit"] == 0, "as above"
    reason = "PodFailurePolicy" if action == "FailJob" else "BackoffLimitExceeded"
    for rule in jobset["spec"]["failurePolicy"]["rules"]:
        patterns = rule["onJobFailureMessagePatterns"]
        if reason in rule["onJobFailureReasons"] and any(re.search(each, message) for each in patterns):
            return str(rule["action"])
    return "RestartJobSet"
