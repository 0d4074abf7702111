"""The composed stack, used for real: `make images stack-test`. Not part of `make test`, which needs no containers."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

from mpcompress_client import CompressionClient, MPCompressError
from tests.stack.composed import ROOT, Stack, eventually
from tests.stack.load import Load

FEATURES = np.load(ROOT / "tests/data/features_final.npy")
KLT = "klt-imgfocus-vits14-final"
# Empty unless something is there to show: a GPU, a codec with a process of its own.
MAY_BE_EMPTY = ("GPU memory",)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    stack = Stack.make(MPCOMPRESS_SERVERS="2", MPCOMPRESS_WORKERS="2")
    stack.down()
    try:
        stack.compose("up", "-d", *stack.services)
        eventually(lambda: len(stack.ids("server")) == len(stack.ids("vtm-worker")) == 2, "two of each run")
        eventually(lambda: all(map(stack.healthy, (*stack.ids("server"), *stack.ids("vtm-worker")))), "all serve")
        eventually(lambda: _members(stack) == 2, "Envoy and Prometheus know two servers")
        yield stack
    finally:
        stack.down()


def _members(stack: Stack) -> float:
    return stack.value('envoy_cluster_membership_healthy{envoy_cluster_name="server"}')


def test_containers_are_confined(stack: Stack) -> None:
    for service in stack.services:
        for container in stack.ids(service):
            host = stack.inspect(container)["HostConfig"]
            assert host["ReadonlyRootfs"], service
            assert host["Memory"] > 0, service
            assert host["NanoCpus"] > 0 or host["CpuQuota"] > 0, service
    for container in (*stack.ids("server"), *stack.ids("vtm-worker")):
        assert stack.containers("exec", container, "id", "-u").strip() == "10001"
        assert not stack.succeeds("exec", container, "touch", "/opt/mpcompress/file")
        assert stack.succeeds("exec", container, "touch", "/tmp/file")


def test_the_demo_runs(stack: Stack) -> None:
    stack.environment["DEMO_SECONDS"] = "3"
    said = stack.compose("--profile", "demo", "run", "--rm", "--no-deps", "demo")
    assert KLT in said
    assert "items/s" in said


def _target(stack: Stack, variable: str = "MPCOMPRESS_PORT") -> str:
    return f"127.0.0.1:{stack.port(variable)}"


@pytest.mark.parametrize(
    ("codec", "nmse"),
    [
        (KLT, 0.05),
        ("x265-dinov2-cls-tiles", 0.2),
        ("vvenc-dinov2-cls-tiles", 0.2),
        ("vtm-dinov2-cls-tiles", 0.2),
    ],
)
def test_round_trip_through_envoy(stack: Stack, codec: str, nmse: float) -> None:
    if codec.startswith("vtm-") and "VTM_HOME" not in stack.environment:
        pytest.skip("VTM_HOME names no VTM")
    features = FEATURES[0]
    with CompressionClient(_target(stack), timeout_s=300) as client:
        unit = client.compress(features, codec=codec, qp=24 if codec == KLT else 27)
        again = client.decompress(unit)
    exact, decoded = features.astype(np.float64), np.asarray(again, np.float64)
    assert np.mean((decoded - exact) ** 2) < nmse * exact.var()
    assert unit.nbytes < features.nbytes / 10


def test_every_panel_shows_something(stack: Stack) -> None:
    with Load(_target(stack), FEATURES) as load, CompressionClient(_target(stack)) as client:
        with pytest.raises(MPCompressError):
            client.compress(FEATURES[0], codec="no-such-codec")
        client.decompress(client.compress(FEATURES[0], codec=KLT, qp=24))
        panels = json.loads((ROOT / "docker/grafana/dashboards/mpcompress.json").read_text())["panels"]
        pending = {(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]}
        pending = {(title, expression) for title, expression in pending if title not in MAY_BE_EMPTY}

        def all_there() -> bool:
            pending.difference_update([entry for entry in pending if stack.query(entry[1])])
            with_errors = [entry for entry in pending if "result" in entry[1] or "rejected" in entry[1]]
            if with_errors:  # rates need a change between two scrapes
                with pytest.raises(MPCompressError):
                    client.compress(FEATURES[0], codec="no-such-codec")
            return not pending

        try:
            eventually(all_there, "every panel")
        except AssertionError as error:
            raise AssertionError(f"no data for {sorted(pending)}") from error
    assert not load.errors


def test_grafana_has_the_dashboard(stack: Stack) -> None:
    if "grafana" not in stack.services:
        pytest.skip("grafana is not among STACK_SERVICES")
    import urllib.request

    url = f"http://127.0.0.1:{stack.port('GRAFANA_PORT')}/api/dashboards/uid/mpcompress"

    def there() -> bool:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(json.load(answer)["dashboard"]["panels"])

    eventually(there, "Grafana's dashboard")


def test_every_recording_rule_works(stack: Stack) -> None:
    assert stack.value("sum(prometheus_rule_evaluation_failures_total) or vector(0)") == 0
    assert stack.value('up{job="server"}') == stack.value('up{job="vtm-worker"}') == 2


def _all_answered(load: Load) -> None:
    assert not load.errors, load.errors[:3]
    assert len(load.answers) == load.sent > 0
    assert len(set(load.answers)) == len(FEATURES), "the same features gave different units"


def test_a_killed_server_loses_no_item(stack: Stack) -> None:
    victim = stack.ids("server")[0]
    with Load(_target(stack), FEATURES) as load:
        eventually(lambda: len(load.answers) > 20, "the load runs")
        stack.containers("kill", "-s", "KILL", victim)
        since = len(load.answers)
        eventually(lambda: len(load.answers) > since + 50, "the load goes on")
    stack.containers("start", victim)  # a kill by hand is not what `restart: unless-stopped` repairs
    eventually(lambda: stack.healthy(victim), "the server is back")
    eventually(lambda: _members(stack) == 2, "Envoy finds it")
    _all_answered(load)


@pytest.mark.parametrize("variable", ["MPCOMPRESS_PORT", "MPCOMPRESS_VTM_PORT"], ids=["behind the server", "direct"])
def test_a_killed_worker_loses_no_item(stack: Stack, variable: str) -> None:
    workers = stack.ids("vtm-worker")
    with CompressionClient(_target(stack, variable), timeout_s=300) as client:
        items = list(FEATURES) * 10
        many = client.compress_many(items, codec="x265-dinov2-cls-tiles", qp=27, errors="return", look_ahead=len(items))
        results = [next(many)]  # and the workers have the rest
        victim = next(worker for worker in workers * 3 if stack.metric(worker, "mpcompress_slots_busy") > 0)
        stack.containers("kill", "-s", "KILL", victim)
        results += list(many)
    assert [result for result in results if isinstance(result, MPCompressError)] == []
    assert len(results) == len(items)
    stack.containers("start", victim)
    eventually(lambda: stack.healthy(victim), "the worker is back")


def test_a_rolling_restart_fails_no_item(stack: Stack) -> None:
    with Load(_target(stack), FEATURES) as load:
        eventually(lambda: len(load.answers) > 20, "the load runs")
        for server in stack.ids("server"):
            stack.containers("stop", "-t", "60", server)
            assert stack.inspect(server)["State"]["ExitCode"] == 0, "drained, not killed"
            stack.containers("start", server)
            eventually(lambda server=server: stack.healthy(server), "the server is back")  # type: ignore[misc]
            eventually(lambda: _members(stack) == 2, "Envoy finds it")
    _all_answered(load)
