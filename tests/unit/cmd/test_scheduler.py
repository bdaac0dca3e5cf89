"""What `raksha-scheduler` reads."""

from __future__ import annotations

from pathlib import Path

from raksha.cmd import embedded, scheduler


def test_schedulers_keep_to_the_limits_that_the_api_tells(tmp_path: Path) -> None:
    config = tmp_path / "raksha.conf"
    config.write_text("[api]\nmax_runs = 7\nmax_stored_bytes = 1000\n")
    asked = embedded.Asked(state_dir=tmp_path, bind=None, vault=None, connect=None, config=config)
    for settings in (scheduler.load(config), embedded.settings(asked).scheduler):
        assert (settings.max_runs, settings.max_stored_bytes) == (7, 1000)
    config.write_text("")
    settings = scheduler.load(config)
    assert (settings.max_runs, settings.max_stored_bytes) == (-1, -1)
