"""Who has died or hangs: ranks watch themselves and each other, name the culprit, and end the job.

``watch`` runs the threads, ``report`` is what ranks tell each other, ``judgement`` decides (pure functions),
``process`` asks the kernel, ``dump`` writes down what was found.
"""

from ppar_dist.watchdog.heartbeat import OFF, RUNNING, WAITING, Heartbeat
from ppar_dist.watchdog.watch import Watchdog

__all__ = ["OFF", "RUNNING", "WAITING", "Heartbeat", "Watchdog"]
