"""`/metrics`: Prometheus text, read from the store when asked.

What it is: a collector over counters that the store's scripts keep and the status documents of the data process.
What it is not: a second set of counters; a restart of this process loses nothing.
What must stay true: names end in their unit; label values come from names that edgeflow checked.
"""

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from edgeflow.api.context import Api, ApiDep
from edgeflow.api.problems import responses
from edgeflow.store.drift import KIND, WHATS
from edgeflow.store.records import Quota

router = APIRouter(tags=["health"])

TEXT = "text/plain; version=0.0.4; charset=utf-8"
TIMES = ("platform_ms", "waiting_ms", "handler_ms")
QUANTILES = {"p50": "0.5", "p99": "0.99"}


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **responses()})
def metrics(api: ApiDep) -> Response:
    """Counters per namespace, depths of inboxes, pending joins, links, and times per function."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_PopCollector(api))
    return Response(generate_latest(registry), headers={"Content-Type": TEXT})


class _PopCollector(Collector):
    def __init__(self, api: Api) -> None:
        self._api = api

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        settings = self._api.settings
        yield InfoMetricFamily(
            "edgeflow_pop", "This PoP", {"pop": settings.pop, "cluster": settings.cluster, "mode": settings.mode}
        )
        yield from self._namespaces()
        yield from self._functions()
        yield from self._links()
        drift = CounterMetricFamily("edgeflow_drift", "Things that were found other than declared", labels=["what"])
        counts = dict.fromkeys(WHATS, 0)
        for document in self._api.store.local.docs(KIND).values():
            counts[document["what"]] = counts.get(document["what"], 0) + document["count"]
        for what, count in counts.items():
            drift.add_metric([what], count)
        yield drift
        streams = GaugeMetricFamily("edgeflow_streams", "Followers of channels over HTTP")
        streams.add_metric([], self._api.hub.subscribers())
        yield streams
        waiting = GaugeMetricFamily(
            "edgeflow_requests_waiting", "Requests that wait for a result, a version, or what a session has seen"
        )
        waiting.add_metric([], self._api.waits.waiting())
        yield waiting
        removed = CounterMetricFamily("edgeflow_unused_removed", "What nothing used and was removed", labels=["what"])
        for what, count in sorted((self._api.store.local.docs("kept").get("removed") or {}).items()):
            if what != "at_ms":
                removed.add_metric([what], count)
        yield removed
        bodies = GaugeMetricFamily("edgeflow_request_bodies_bytes", "Bytes of request bodies held right now")
        bodies.add_metric([], self._api.budget.held_bytes)
        yield bodies

    def _namespaces(self) -> Iterator[Metric]:
        counters = CounterMetricFamily(
            "edgeflow_events", "What happened, by the store's own counters", labels=["namespace", "what", "reason"]
        )
        heads = GaugeMetricFamily(
            "edgeflow_release_head", "Position of the newest released event", labels=["namespace"]
        )
        joins = GaugeMetricFamily(
            "edgeflow_joins_pending", "Joins that wait for inputs", labels=["namespace", "function"]
        )
        standby = GaugeMetricFamily(
            "edgeflow_standby_arrivals", "Events kept here that another PoP has to handle", labels=["namespace"]
        )
        gateways = GaugeMetricFamily(
            "edgeflow_gateway_connected", "Whether the namespace's MQTT session is connected", labels=["namespace"]
        )
        letters = GaugeMetricFamily("edgeflow_dead_letters", "Dead letters that are kept here", labels=["namespace"])
        cached = GaugeMetricFamily(
            "edgeflow_cached_bodies_bytes",
            "Bodies that are here though a policy places them elsewhere",
            labels=["namespace"],
        )
        missing = GaugeMetricFamily(
            "edgeflow_missing_bodies", "Bodies that ought to be here and are asked for", labels=["namespace"]
        )
        events = GaugeMetricFamily(
            "edgeflow_quota_events_per_second", "Events a second that the namespace may send here", labels=["namespace"]
        )
        sizes = GaugeMetricFamily(
            "edgeflow_quota_bytes_per_second", "Bytes a second that the namespace may send here", labels=["namespace"]
        )
        states = self._api.store.local.docs("gateway_state")
        for name in sorted(self._api.store.namespaces()):
            handle = self._api.store.namespace(name)
            handle.write_notes()
            for counter, value in sorted(handle.counters().items()):
                what, _, reason = counter.partition(":")
                counters.add_metric([name, what, reason], value)
            heads.add_metric([name], handle.release_head())
            pending: dict[str, int] = {}
            standby.add_metric([name], handle.standby_count())
            for join in handle.pending_joins():
                pending[join.function] = pending.get(join.function, 0) + 1
            for function, number in sorted(pending.items()):
                joins.add_metric([name, function], number)
            if name in states:
                gateways.add_metric([name], bool(states[name].get("connected")))
            letters.add_metric([name], handle.dead_letter_count())
            cached.add_metric([name], handle.cached_bytes())
            missing.add_metric([name], len(handle.missing_blobs()))
            quota = handle.quota() or Quota()
            for gauge, bound in ((events, quota.events_per_s), (sizes, quota.bytes_per_s)):
                if bound is not None:
                    gauge.add_metric([name], bound)
        yield from (counters, heads, joins, standby, gateways, letters, cached, missing, events, sizes)

    def _functions(self) -> Iterator[Metric]:
        labels = ["namespace", "function"]
        depth = GaugeMetricFamily("edgeflow_inbox_invocations", "Invocations in an inbox", labels=[*labels, "state"])
        oldest = GaugeMetricFamily("edgeflow_inbox_oldest_seconds", "Age of the oldest ready invocation", labels=labels)
        times = GaugeMetricFamily(
            "edgeflow_function_seconds",
            "Times of a function over its recent window",
            labels=[*labels, "what", "quantile"],
        )
        ended = CounterMetricFamily(
            "edgeflow_function_invocations",
            "Attempts that ended, since the data process started",
            labels=[*labels, "result"],
        )
        ready = GaugeMetricFamily("edgeflow_function_ready", "Whether a function is ready", labels=labels)
        local = self._api.store.local
        for key, state in sorted(local.docs("function_state").items()):
            name, _, function = key.partition("/")
            ready.add_metric([name, function], state.get("state") == "ready")
            if state.get("revision"):
                stats = self._api.store.namespace(name).inbox_stats(function, state["revision"])
                for what in ("ready", "delayed", "claimed", "turn"):
                    depth.add_metric([name, function, what], getattr(stats, what))
                oldest.add_metric([name, function], stats.oldest_ms / 1000)
        for key, document in sorted(local.docs("function_stats").items()):
            name, _, function = key.partition("/")
            for what in TIMES:
                _add_quantiles(times, [name, function, what.removesuffix("_ms")], document.get(what))
            failed = int(document.get("failed") or 0)
            ended.add_metric([name, function, "committed"], int(document.get("invocations") or 0))
            ended.add_metric([name, function, "failed"], failed)
        yield from (ready, depth, oldest, times, ended)

    def _links(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("edgeflow_link_up", "Whether the link to a peer is up", labels=["peer"])
        gauges = {
            "entries_behind": (
                GaugeMetricFamily(
                    "edgeflow_link_behind_entries", "Entries the peer does not have yet", labels=["peer"]
                ),
                1.0,
            ),
            "bytes_behind": (
                GaugeMetricFamily("edgeflow_link_behind_bytes", "Bytes the peer does not have yet", labels=["peer"]),
                1.0,
            ),
            "rtt_ms": (
                GaugeMetricFamily("edgeflow_link_round_trip_seconds", "Round trip time to the peer", labels=["peer"]),
                0.001,
            ),
            "rtt_p99_ms": (
                GaugeMetricFamily(
                    "edgeflow_link_round_trip_p99_seconds", "p99 of the last minute's round trips", labels=["peer"]
                ),
                0.001,
            ),
            "bandwidth_bytes_s": (
                GaugeMetricFamily(
                    "edgeflow_link_bandwidth_bytes_per_second", "What the line took when it was full", labels=["peer"]
                ),
                1.0,
            ),
            "staleness_ms": (
                GaugeMetricFamily(
                    "edgeflow_link_staleness_seconds", "Age of what arrives from the peer", labels=["peer"]
                ),
                0.001,
            ),
        }
        for peer, document in sorted(self._api.store.local.docs("link_state").items()):
            up.add_metric([peer], document.get("state") == "up")
            for field, (gauge, scale) in gauges.items():
                if isinstance(document.get(field), int | float):
                    gauge.add_metric([peer], document[field] * scale)
        members = GaugeMetricFamily(
            "edgeflow_member", "1 for the state in which a PoP is seen here", labels=["member", "state"]
        )
        for pop, document in sorted(self._api.store.local.docs("member_state").items()):
            members.add_metric([pop, str(document.get("state"))], 1)
        yield members
        yield up
        yield from (gauge for gauge, _ in gauges.values())
        totals = {
            "relayed": CounterMetricFamily(
                "edgeflow_link_relayed_entries", "Entries of other PoPs sent to the peer", labels=["peer"]
            ),
            "snapshots_sent": CounterMetricFamily(
                "edgeflow_link_snapshots", "Snapshots the peer has taken", labels=["peer"]
            ),
            "saved_bytes": CounterMetricFamily("edgeflow_link_saved_bytes", "Saved by deflating", labels=["peer"]),
            "sent_bytes": CounterMetricFamily("edgeflow_link_sent_bytes", "Sent, before TLS", labels=["peer"]),
            "received_bytes": CounterMetricFamily(
                "edgeflow_link_received_bytes", "Received, after TLS", labels=["peer"]
            ),
        }
        for peer, document in sorted(self._api.store.local.docs("link_state").items()):
            for field, total in totals.items():
                total.add_metric([peer], int(document.get(field) or 0))
        yield from totals.values()
        levels = {
            "staleness_ms": (
                GaugeMetricFamily("edgeflow_staleness_seconds", "Age of what is readable here", labels=["namespace"]),
                0.001,
            ),
            "log_bytes": (GaugeMetricFamily("edgeflow_log_bytes", "Memory of the logs", labels=["namespace"]), 1.0),
            "parked": (GaugeMetricFamily("edgeflow_parked", "Entries from the future", labels=["namespace"]), 1.0),
        }
        for name, document in sorted(self._api.store.local.docs("lag").items()):
            for field, (level, scale) in levels.items():
                if isinstance(document.get(field), int | float):
                    level.add_metric([name], document[field] * scale)
        yield from (level for level, _ in levels.values())


def _add_quantiles(family: GaugeMetricFamily, labels: list[str], document: Any) -> None:
    for name, quantile in QUANTILES.items():
        if isinstance(document, dict) and isinstance(document.get(name), int | float):
            family.add_metric([*labels, quantile], document[name] / 1000)
