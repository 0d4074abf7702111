"""What a client hears of an item that a worker behind its server codes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from own_server import own_server

from mpcompress_client import CompressionClient, Progress


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("av", "imageio_ffmpeg")), reason="needs the extra [vvc]"
)
def test_a_client_hears_through_a_server_what_its_worker_does(tmp_path: Path):
    """Place in the line, time, strips done: two items before one encoder, which stands still until all was heard."""
    go = tmp_path / "go"
    vtm = _stand_in().install(tmp_path / "vtm", encoder="waits", go=str(go))
    entry = f'[[codecs]]\nid = "vtm-dinov2-cls"\noptions = {{vtm_path = "{vtm}"}}\n'
    worker_config = f'role = "vtm-worker"\n[worker]\nslots = 1\n{entry}'
    (tmp_path / "worker").mkdir()
    events: list[Progress] = []

    def hear(event: Progress) -> None:
        events.append(event)
        places = {heard.queue_position for heard in events if heard.stage == "queued"}
        if {0, 1} <= places and any(heard.stage == "progress" and heard.elapsed_s > 0 for heard in events):
            go.touch()

    h = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    with own_server(tmp_path / "worker", worker_config) as worker:
        remote = f'[[codecs]]\nid = "vtm-dinov2-cls"\nfamily = "remote"\noptions = {{target = "{worker}"}}\n'
        with own_server(tmp_path, remote) as server, CompressionClient(server, timeout_s=120) as client:
            units = client.compress_many([h] * 3, codec="vtm-dinov2-cls", strips=2, progress=hear)
            assert len({unit.payload for unit in units}) == 1
    for index in range(3):
        mine = [event for event in events if event.index == index]
        assert [mine[0].stage, mine[-1].stage] == ["accepted", "done"]
        counts = [(event.parts_done, event.parts_total) for event in mine if event.parts_total]
        assert list(dict.fromkeys(counts)) == [(1, 2), (2, 2)]
        times = [event.elapsed_s for event in mine[:-1]]
        assert times == sorted(times)


def _stand_in() -> ModuleType:
    """The module that stands in for VTM."""
    path = Path(__file__).resolve().parents[1] / "fakes/vtm_stand_in.py"
    spec = importlib.util.spec_from_file_location("vtm_stand_in", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
