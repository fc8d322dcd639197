"""What can go wrong around a cluster: not running, a program is missing, a process does not stay up."""

from edgeflow.errors import EdgeflowError


class HostError(EdgeflowError):
    """The cluster on this machine could not be handled."""

    code = "host-error"
    hint = "`edgeflow doctor` checks what this machine needs."


class NoCluster(HostError):
    """No running cluster was found."""

    code = "no-cluster"
    status = 503
    hint = "Start one with `edgeflow up` (or `docker compose up`), or set EDGEFLOW_HOME to its folder."


class NoSuchPop(HostError):
    """The cluster has no such PoP."""

    code = "no-such-pop"
    status = 404
    hint = "`edgeflow status` lists the PoPs."


class BadClusterSpec(HostError):
    """The description of the cluster is not valid."""

    code = "bad-cluster-spec"
    status = 400
    hint = "PoP ids are [a-z0-9-]+, at most 32 characters, and differ from each other."


class LinkNotApplied(HostError):
    """The link proxy runs and does not take a change of a link."""

    code = "link-not-applied"
    status = 504
    hint = "`edgeflow logs --process wan` shows what it does; the change holds when it goes on."


class AlreadyRunning(HostError):
    """Another cluster already runs from this folder."""

    code = "already-running"
    status = 409
    hint = "Stop it with `edgeflow down`, or use another folder: EDGEFLOW_HOME=… edgeflow up."


class MissingProgram(HostError):
    """A program that embedded mode needs is not installed."""

    code = "missing-program"
    hint = "`edgeflow doctor` lists what is missing and how to install it."


class ProcessFailing(HostError):
    """A process of the cluster does not stay up."""

    code = "process-failing"
    hint = "Its last log lines are above; `edgeflow doctor` checks the machine."


class StartTimeout(HostError):
    """The cluster did not become ready in time."""

    code = "start-timeout"
    hint = "`edgeflow status` shows which part is missing, `edgeflow logs --process <pop>/<process>` why."


class DockerFailed(HostError):
    """A docker command failed."""

    code = "docker-failed"
    hint = "Check with `docker compose ps`; without an engine use `edgeflow up --mode embedded`."
