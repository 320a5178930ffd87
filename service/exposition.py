"""The metrics of several processes as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

# How the values of one series are put together; the others are added up.
_JOINED: dict[str, Callable[[float, float], float]] = {
    "autoencoder_model_info": max,
    "autoencoder_transport_info": max,
    "autoencoder_model_ready": min,
    "autoencoder_certificate_expiry_timestamp_seconds": min,
}
# What goes on growing when a process is replaced.
_KEPT = ("counter", "histogram")

Series = tuple[str, tuple[tuple[str, str], ...]]


class Total:
    """One series of each name and labels, of all processes that were ever added."""

    def __init__(self) -> None:
        self._families: dict[str, tuple[str, str]] = {}
        self._kept: dict[str, dict[Series, float]] = {}

    def keep(self, text: str) -> None:
        """Count in, from now on, what a process that has ended had counted when it last said so."""
        self._add(self._kept, text, only=_KEPT)

    def of(self, texts: Iterable[str]) -> list[Metric]:
        """The metrics of the processes that live, given in the text format, and of those that were kept."""
        families = {name: dict(series) for name, series in self._kept.items()}
        for text in texts:
            self._add(families, text)
        metrics = []
        for name, series in families.items():
            kind, documentation = self._families[name]
            metric = Metric(name, documentation, kind)
            for (sample, labels), value in series.items():
                metric.add_sample(sample, dict(labels), value)
            metrics.append(metric)
        return metrics

    def _add(self, families: dict[str, dict[Series, float]], text: str, only: tuple[str, ...] = ()) -> None:
        for metric in text_string_to_metric_families(text):
            if only and metric.type not in only:
                continue
            self._families[metric.name] = metric.type, metric.documentation
            series = families.setdefault(metric.name, {})
            join = min if metric.name.endswith("_created") else _JOINED.get(metric.name, float.__add__)
            for sample in metric.samples:
                key = sample.name, tuple(sorted(sample.labels.items()))
                value = float(sample.value)
                series[key] = join(series[key], value) if key in series else value
