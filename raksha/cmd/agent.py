"""`raksha-agent`: captures, stores and restores on one hypervisor, as schedulers ask. Exit codes: docs/cli.md."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from raksha import config, config_agent, config_check, logs
from raksha.agent.service import Agent
from raksha.errors import RakshaError, SettingsWrong
from raksha.rpc import Bus

_STOP = (signal.SIGTERM, signal.SIGINT)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Never returns."""
    parser = argparse.ArgumentParser(prog="raksha-agent", description="The agent of the Raksha service on this host.")
    parser.add_argument("--config", metavar="FILE", type=Path, help="default: /etc/raksha/raksha.conf, if it is there")
    options = parser.parse_args(arguments)
    try:
        _work(options.config)
    except RakshaError as error:
        print(f"raksha-agent: {error}", file=sys.stderr)
        if error.advice():
            print(f"  {error.advice()}", file=sys.stderr)
        sys.exit(error.exit_code)
    # a merge that has not ended is nothing to wait for: the next start looks after it
    logging.shutdown()
    os._exit(0)


def _work(path: Path | None) -> None:
    """Until SIGTERM or SIGINT, and then until what is under way has ended or was handed back."""
    config_check.check(path)
    settings, agent_settings = config.load(path), config_agent.load(path)
    if not agent_settings.transport_url:
        raise SettingsWrong(detail="[agent] transport_url is not set: an agent needs the message bus of its schedulers")
    logging.basicConfig(level=logging.INFO, handlers=[logs.named()])
    # before there are threads: none of them is interrupted, the first one looks for them
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    agent = Agent(settings, agent_settings, Bus(agent_settings.transport_url, agent_settings.patience))
    failed: list[OSError] = []

    def run() -> None:
        try:
            agent.run()
        except OSError as error:  # no address for the metrics
            failed.append(error)

    thread = threading.Thread(target=run, name="agent")
    thread.start()
    while thread.is_alive() and signal.sigtimedwait(_STOP, 1.0) is None:
        pass
    agent.stop()
    thread.join()
    if failed:
        raise SettingsWrong(detail=f"[agent] metrics_address, metrics_port: {failed[0]}")


if __name__ == "__main__":
    main()
