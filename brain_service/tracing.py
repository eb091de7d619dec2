"""Traces for OpenTelemetry: a span a request and a span a stage of a job, where `otlp_endpoint` names a collector.

Without that setting nothing is imported but this file, and nothing is paid. Spans are made when they are over,
kept in a bounded queue, and sent in the background: a collector that is away costs spans, never an answer.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from brain_service.errors import ConfigError
from brain_service.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

__all__ = ["Tracing"]

_PATH = "/v1/traces"
_CLOSE_MS = 2000


class Tracing:
    """Where spans go. Thread-safe."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("continuon-brain")
        self._propagator = TraceContextTextMapPropagator()

    @staticmethod
    def of(settings: Settings, service: str) -> "Tracing | None":
        """Return what sends the spans of `service` where the settings say; None where they say nothing.

        Raises:
            ConfigError: OpenTelemetry's SDK is not installed; names the extra.
        """
        if settings.otlp_endpoint is None:
            return None
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        except ImportError as error:
            raise ConfigError(
                f"otlp_endpoint is set and {error.name} is missing; pip install 'continuon-brain[otel]'"
            ) from error
        provider = TracerProvider(
            resource=Resource.create({"service.name": service}),
            sampler=ParentBased(TraceIdRatioBased(settings.trace_share)),
        )
        exporter = OTLPSpanExporter(settings.otlp_endpoint.rstrip("/") + _PATH, timeout=5)
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
        return Tracing(provider)

    def ended(
        self,
        name: str,
        duration_s: float,
        attributes: Mapping[str, Any],
        *,
        failed: bool = False,
        parent: str = "",
    ) -> None:
        """Keep a span that ends now; `parent` is the caller's `traceparent` (W3C Trace Context) if it sent one."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        now_ns = time.time_ns()
        context = self._propagator.extract({"traceparent": parent}) if parent else None
        span = self._tracer.start_span(
            name, context, SpanKind.SERVER, dict(attributes), start_time=now_ns - int(duration_s * 1e9)
        )
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(now_ns)

    def close(self) -> None:
        """Send what is left, for two seconds at most. Blocking."""
        self._provider.force_flush(_CLOSE_MS)
        self._provider.shutdown()
