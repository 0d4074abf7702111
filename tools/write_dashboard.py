"""Write docker/grafana/dashboards/mpcompress.json from the panels below; --check only compares.

A dashboard exported from Grafana is two thousand lines of defaults; these are the lines that say something.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

TARGET = Path(__file__).resolve().parent.parent / "docker" / "grafana" / "dashboards" / "mpcompress.json"
_WIDTH, _HEIGHT, _COLUMNS = 8, 7, 3

# Title, unit of Grafana, [(PromQL, legend), ...]. "GPU memory" is empty without a GPU.
PANELS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("Items per second", "ops", (("job_operation:mpcompress_items:rate1m", "{{job}} {{operation}}"),)),
    (
        "Results other than ok",
        "ops",
        (('job_operation_result:mpcompress_items:rate1m{result!="ok"}', "{{job}} {{operation}} {{result}}"),),
    ),
    (
        "Rejected items",
        "ops",
        (("sum by (job, reason) (rate(mpcompress_items_rejected_total[1m]))", "{{job}} {{reason}}"),),
    ),
    (
        "Latency by stage, median",
        "s",
        (("job_codec_stage:mpcompress_stage_seconds:p50_1m", "{{codec}} {{stage}}"),),
    ),
    (
        "Latency by stage, 99 %",
        "s",
        (("job_codec_stage:mpcompress_stage_seconds:p99_1m", "{{codec}} {{stage}}"),),
    ),
    ("Items per batch", "short", (("job_codec:mpcompress_batch_items:mean1m", "{{job}} {{codec}}"),)),
    ("Bits per feature point", "short", (("job_codec:mpcompress_bpfp:mean5m", "{{codec}}"),)),
    (
        "Bytes in and out",
        "Bps",
        (
            ("sum by (job, operation) (rate(mpcompress_input_bytes_total[1m]))", "{{job}} {{operation}} in"),
            ("sum by (job, operation) (rate(mpcompress_output_bytes_total[1m]))", "{{job}} {{operation}} out"),
        ),
    ),
    (
        "Items waiting for their codec",
        "short",
        (("sum by (job, codec) (mpcompress_queue_items)", "{{job}} {{codec}}"),),
    ),
    (
        "Workers: encoders busy, items waiting for each",
        "short",
        (
            ("job:mpcompress_slots:utilisation", "{{job}} busy, of 1"),
            ("job:mpcompress_slots:queue_items", "{{job}} waiting"),
        ),
    ),
    ("Reserved bytes of the limit", "percentunit", (("job:mpcompress_inflight_bytes:utilisation", "{{job}}"),)),
    (
        "Codecs ready, servers up",
        "short",
        (
            ("sum by (job) (mpcompress_codec_ready)", "{{job}} codecs"),
            ('sum by (job) (up{job!="envoy"})', "{{job}} up"),
        ),
    ),
    (
        "Worker processes ended",
        "short",
        (("sum by (job, codec) (increase(mpcompress_worker_restarts_total[5m]))", "{{job}} {{codec}}"),),
    ),
    (
        "Envoy: streams and healthy members",
        "short",
        (
            ("sum by (envoy_cluster_name) (envoy_cluster_upstream_rq_active)", "{{envoy_cluster_name}} streams"),
            ("sum by (envoy_cluster_name) (envoy_cluster_membership_healthy)", "{{envoy_cluster_name}} healthy"),
        ),
    ),
    (
        "Calls by status",
        "ops",
        (("sum by (job, grpc_code) (rate(grpc_server_handled_total[1m]))", "{{job}} {{grpc_code}}"),),
    ),
    (
        "GPU memory",
        "bytes",
        (("sum by (instance, device, kind) (mpcompress_gpu_memory_bytes)", "{{instance}} {{device}} {{kind}}"),),
    ),
)


def dashboard() -> dict[str, Any]:
    """The dashboard in Grafana's terms."""
    return {
        "uid": "mpcompress",
        "title": "MPCompress",
        "schemaVersion": 39,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "panels": [_panel(number, *panel) for number, panel in enumerate(PANELS)],
    }


def _panel(number: int, title: str, unit: str, queries: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "prometheus"}
    row, column = divmod(number, _COLUMNS)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": title,
        "datasource": source,
        "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": source, "expr": expression, "legendFormat": legend}
            for index, (expression, legend) in enumerate(queries)
        ],
    }


def main(arguments: list[str]) -> int:
    """Write or compare."""
    wanted = json.dumps(dashboard(), indent=1) + "\n"
    if "--check" not in arguments:
        TARGET.write_text(wanted, encoding="utf-8")
        return 0
    if not TARGET.exists() or TARGET.read_text(encoding="utf-8") != wanted:
        print(f"{TARGET.name} is out of date: python tools/write_dashboard.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
