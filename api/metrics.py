"""The queue's and the workers' figures in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE

from shared.queue.queue import QueueFigures

__all__ = ["CONTENT_TYPE", "prometheus_text"]


class _Figures:
    """A collector for one answer."""

    def __init__(self, figures: QueueFigures) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        figures = self._figures
        jobs = GaugeMetricFamily("containerpub_jobs", "Jobs on a queue.", labels=("queue", "place"))
        for queue, count in figures.jobs.items():
            jobs.add_metric((queue, "running"), figures.running[queue])
            jobs.add_metric((queue, "waiting"), max(0, count - figures.running[queue]))
        yield jobs
        yield GaugeMetricFamily("containerpub_records_waiting", "Records not yet in Postgres.", value=figures.records)
        yield GaugeMetricFamily("containerpub_workers", "Workers that report.", value=len(figures.workers))
        if figures.out_of_place is not None:
            yield GaugeMetricFamily(
                "containerpub_jobs_out_of_place",
                "Findings of the last comparison of Postgres with the queue; anything but 0 is a fault.",
                value=figures.out_of_place,
            )

        sandboxes = GaugeMetricFamily("containerpub_sandboxes", "Sandboxes by state.", labels=("worker", "state"))
        memory = GaugeMetricFamily(
            "containerpub_sandbox_memory_megabytes",
            "Caps of all sandboxes, and their budget.",
            labels=("worker", "kind"),
        )
        slots = GaugeMetricFamily("containerpub_slots_busy", "Slots in use.", labels=("worker", "queue"))
        settled = CounterMetricFamily("containerpub_attempts_settled", "Attempts that ended.", labels=("worker",))
        for worker, report in figures.workers.items():
            pool = report["sandboxes"]
            for state in ("busy", "idle", "paused", "generic"):
                sandboxes.add_metric((worker, state), pool[state])
            memory.add_metric((worker, "used"), pool["memory_mb"])
            memory.add_metric((worker, "allowed"), pool["memory_limit_mb"])
            for queue, busy in report["slots"].items():
                slots.add_metric((worker, queue), busy)
            settled.add_metric((worker,), report["settled"])
        yield from (sandboxes, memory, slots, settled)


def prometheus_text(figures: QueueFigures) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Figures(figures))
    return generate_latest(registry)
