"""The command `mpcompress-server`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from mpcompress_server.allocator import return_freed_memory
from mpcompress_server.settings import Settings, SettingsError, load_settings

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_MAX_DEFAULT_THREADS = 4
# A thread inside a codec cannot be stopped: this long after the grace period the process ends regardless.
_STUCK_S = 5.0
_TWICE = 130
_EXAMPLES = """\b
Examples:
  mpcompress-server serve
  mpcompress-server serve --listen 0.0.0.0:50051 --log-format json
  mpcompress-server serve --config server.toml --port-file /run/mpcompress.port
  mpcompress-server serve --role vtm-worker --listen 0.0.0.0:50051
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mpcompress", prog_name="mpcompress-server")
def main() -> None:
    """Compress and decompress feature tensors over gRPC."""


@main.command(epilog=_EXAMPLES)
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), help="TOML file; without it every shipped codec."
)
@click.option("--listen", metavar="HOST:PORT", help="Where to listen; port 0 takes a free one. [127.0.0.1:50051]")
@click.option("--grace", "grace_s", type=float, metavar="SECONDS", help="Time for unfinished items at the end. [30]")
@click.option(
    "--port-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write HOST:PORT here as soon as the server serves.",
)
@click.option(
    "--role",
    type=click.Choice(["server", "vtm-worker"]),
    help="vtm-worker: picture codecs only, as many encoders at a time as there are cores. [server]",
)
@click.option("--metrics", metavar="[HOST]:PORT", help="Prometheus metrics over HTTP, for instance :9464. [none]")
@click.option("--allow-untrained", is_flag=True, help="Serve codecs of random weights too: for tests.")
@click.option("--log-format", type=click.Choice(["json", "console"]), default="console", show_default=True)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def serve(
    config: Path | None,
    listen: str | None,
    grace_s: float | None,
    port_file: Path | None,
    role: str | None,
    metrics: str | None,
    allow_untrained: bool,
    log_format: Any,
    log_level: str,
) -> None:
    """Serve codecs until SIGTERM or Ctrl-C; SIGHUP reads the codecs of the configuration again."""
    return_freed_memory()

    def source() -> Settings:
        return load_settings(
            config,
            listen=listen,
            grace_s=grace_s,
            role=role,
            metrics={"listen": metrics} if metrics is not None else None,
            allow_untrained=allow_untrained or None,
        )

    try:
        settings = source()
    except SettingsError as error:
        _fail(error)
    _limit_numeric_threads(settings)
    # Only now: numpy reads these variables when it is imported.
    from mpcompress_server import logs
    from mpcompress_server.app import ListenError

    logs.configure(log_format, log_level)
    try:
        with asyncio.Runner(loop_factory=_event_loop()) as runner:
            runner.run(_serve(settings, source, port_file))
    except (SettingsError, ListenError) as error:
        _fail(error)


async def _serve(settings: Settings, source: Callable[[], Settings], port_file: Path | None) -> None:
    import structlog

    from mpcompress_server.app import Server

    log = structlog.get_logger("mpcompress_server")
    if port_file is not None and not os.access(port_file.parent, os.W_OK):
        raise SettingsError(f"--port-file: cannot write into {port_file.parent}")
    written = False
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():  # asked twice: now
            os._exit(_TWICE)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    hang_up = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hang_up.set)
    server = Server(settings, source)
    starting = asyncio.create_task(server.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    try:
        if not starting.done():
            starting.cancel()
            with suppress(asyncio.CancelledError):
                await starting
            return
        await starting
        if port_file is not None:
            _write_whole(port_file, server.address + "\n")
            written = True
        log.info("ready", address=server.address)
        reloading = asyncio.create_task(_reload_when_told(server, hang_up))
        await stopping
        reloading.cancel()
        try:
            await asyncio.wait_for(server.stop(), settings.grace_s + _STUCK_S)
        except TimeoutError:
            click.echo("mpcompress-server: a codec does not return from its call; ending without it", err=True)
            os._exit(1)
    finally:
        stopping.cancel()
        if written and port_file is not None:
            port_file.unlink(missing_ok=True)


def _event_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    """Makes the event loop: uvloop's, which takes a quarter less CPU time for each message, where it exists."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


async def _reload_when_told(server: Any, told: asyncio.Event) -> None:
    """Reloads after each SIGHUP; several during one reload are one."""
    while True:
        await told.wait()
        told.clear()
        with suppress(Exception):  # the server logs it, and the next SIGHUP must find somebody who listens
            await server.reload()


def _write_whole(path: Path, text: str) -> None:
    """Writes a file that readers see complete or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        file.write(text)
        os.fchmod(handle, 0o644)
    Path(name).replace(path)


def _limit_numeric_threads(settings: Settings) -> None:
    """Keeps codecs that run side by side from starting a thread per core each. Variables that are set win."""
    instances = sum(entry.instances for entry in settings.codecs) if settings.codecs else 1
    count = settings.executors.numeric_threads
    count = count or max(1, min(_MAX_DEFAULT_THREADS, (os.cpu_count() or 1) // max(1, instances)))
    for name in _THREAD_VARIABLES:
        os.environ.setdefault(name, str(count))


def _fail(error: Exception) -> Any:
    click.echo(f"mpcompress-server: {error}", err=True)
    sys.exit(2)
