"""For the tests of applications: a whole cluster in a folder, and a handler called without one.

`LocalCluster` starts real PoPs (Mosquitto, Redis, agents) as local processes on free ports, and can kill, cut and delay them:

    with LocalCluster(("a", "b")) as cluster:
        access = cluster.pop("a")
        client = Client(access.api_url, access.token)

`call`, `event` and `events` run one handler with fake inputs.
"""

from edgeflow.host.local import LocalCluster
from edgeflow.sdk.testing import call, event, events

__all__ = ["LocalCluster", "call", "event", "events"]
