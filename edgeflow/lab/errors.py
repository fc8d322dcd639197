"""What the fault lab refuses."""

from edgeflow.host.errors import HostError


class NotALab(HostError):
    """The cluster is not one that the lab may hurt."""

    code = "not-a-lab"
    status = 409
    hint = "The lab hurts clusters that `edgeflow up` or the compose file runs on this machine; --anyway if another one is meant."


class BadTrouble(HostError):
    """What is to be done to the cluster makes no sense."""

    code = "bad-trouble"
    status = 400
    hint = "`edgeflow lab --help` shows the verbs, docs/lab.md explains them."


class NotPossibleHere(HostError):
    """This cluster cannot be hurt in this way."""

    code = "not-possible-here"
    status = 409
    hint = "`edgeflow lab run --fresh` starts a cluster of its own, on which all scenarios can run."


class BadScenario(HostError):
    """The scenario is not valid."""

    code = "bad-scenario"
    status = 400
    hint = "`edgeflow lab scenarios` lists those that are there; docs/lab.md says how to write one."


class NotInTime(HostError, AssertionError):
    """A condition did not become true before its deadline."""

    code = "not-in-time"
    status = 504
    hint = "`edgeflow lab status` shows what is still cut, down or paused."
