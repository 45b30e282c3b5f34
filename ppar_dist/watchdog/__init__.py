"""Who has died or hangs: ranks watch themselves and each other, name the culprit, and end the job.

``watch`` is what a rank calls. ``status`` holds where the rank is, ``heartbeat`` is what ranks tell each
other, ``exchange`` sends and keeps it (one thread), ``judge`` looks at it (another), ``judgement`` decides
(pure functions), ``dump`` writes down what was found.
"""

from ppar_dist.watchdog.heartbeat import OFF, RUNNING, WAITING, Heartbeat
from ppar_dist.watchdog.watch import Watchdog

__all__ = ["OFF", "RUNNING", "WAITING", "Heartbeat", "Watchdog"]
