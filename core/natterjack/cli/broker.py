"""The embedded broker by hand: `broker run|env`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from natterjack.broker import DEFAULT_STORE, embed, running_url
from natterjack.cli.exits import CommandError, ExitCode
from natterjack.cli.options import JsonOption, StoreOption
from natterjack.cli.output import write, write_json
from natterjack.cli.run import run, stopping
from natterjack.coroutines import first_of
from natterjack.server import hidden

app = typer.Typer(no_args_is_help=True, help="Run a broker of your own.")


@app.command("run")
def serve(
    *,
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="HOST:PORT", help="By default 127.0.0.1, on 4222 if free; port -1: random."),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    token: Annotated[
        str | None, typer.Option("--token", envvar="NATS_TOKEN", help="What clients must present; off loopback a must.")
    ] = None,
) -> None:
    """Run a broker in the foreground until Ctrl-C."""
    host, port = _listen(listen)
    run(_serve(host, port, store, token))


async def _serve(host: str, port: int | None, store: Path, token: str | None) -> None:
    with stopping() as stop:
        async with await embed(store, host=host, port=port, token=token) as broker:
            if not broker.owned:
                msg = f"a broker runs on {str(store)!r} already, at {hidden(broker.url)}; see `natterjack broker env`"
                raise CommandError(msg)
            write(f"broker {hidden(broker.url)} (store {store}); Ctrl-C ends it")
            where = "" if store == DEFAULT_STORE else f" --store {shlex.quote(str(store))}"
            write(f'other terminals: eval "$(natterjack broker env{where})"')
            reason = await first_of(stop.wait(), broker.wait_lost())
            if isinstance(reason, str):
                raise CommandError(reason, ExitCode.UNREACHABLE)


def _listen(text: str | None) -> tuple[str, int | None]:
    """Read `HOST:PORT`, `HOST` or `:PORT`; an IPv6 address in brackets."""
    if text is None:
        return "127.0.0.1", None
    bare = text.removesuffix(":-1")  # which no URL may have as its port
    try:
        parts = urlsplit(f"//{bare}")
        port = -1 if bare != text else parts.port
    except ValueError as error:
        msg = f"{text!r}: {error}"
        raise typer.BadParameter(msg, param_hint="--listen") from error
    return parts.hostname or "127.0.0.1", port


@app.command()
def env(*, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Print `export NATS_URL=…` of the broker that runs here."""
    url = running_url(store)
    if url is None:
        msg = f"no broker runs on {str(store)!r}; start one with `natterjack broker run`"
        raise CommandError(msg, ExitCode.UNREACHABLE)
    write_json({"NATS_URL": url}) if as_json else write(f"export NATS_URL={shlex.quote(url)}")
