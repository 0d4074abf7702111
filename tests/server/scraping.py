"""What Prometheus finds at a server of a test."""

from __future__ import annotations

import asyncio
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

LISTEN = {"listen": "127.0.0.1:0"}
TYPES = {
    "grpc_server_started": "counter",
    "grpc_server_handled": "counter",
    "grpc_server_msg_received": "counter",
    "grpc_server_msg_sent": "counter",
    "grpc_server_handling_seconds": "histogram",
    "mpcompress_stage_seconds": "histogram",
    "mpcompress_batch_items": "histogram",
    "mpcompress_bpfp": "histogram",
    "mpcompress_input_bytes": "counter",
    "mpcompress_output_bytes": "counter",
    "mpcompress_items": "counter",
    "mpcompress_items_rejected": "counter",
    "mpcompress_items_cancelled": "counter",
    "mpcompress_batch_items_dropped": "counter",
    "mpcompress_batches_shrunk": "counter",
    "mpcompress_worker_restarts": "counter",
    "mpcompress_queue_items": "gauge",
    "mpcompress_codec_ready": "gauge",
    "mpcompress_inflight_bytes": "gauge",
    "mpcompress_inflight_bytes_limit": "gauge",
    "mpcompress_inflight_items": "gauge",
}


class Scrape:
    """One scrape, taken apart."""

    def __init__(self, text: str) -> None:
        self.types = {}
        self.samples = {}
        for family in text_string_to_metric_families(text):
            self.types[family.name] = family.type
            for sample in family.samples:
                self.samples[sample.name, frozenset(sample.labels.items())] = sample.value

    def __call__(self, name, **labels):
        """The value of one sample; 0 when it is not there, as in Prometheus's sums."""
        return self.samples.get((name, frozenset(labels.items())), 0.0)


async def scrape(server):
    def read():
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics.port}/metrics", timeout=30) as answer:
            return answer.read().decode()

    return Scrape(await asyncio.to_thread(read))


async def when(server, ready):
    """Scrapes until it says so: the server counts a call's end after its client has seen it."""
    async with asyncio.timeout(30):
        while not ready(found := await scrape(server)):
            pass
    return found
