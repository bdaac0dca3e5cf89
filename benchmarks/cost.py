"""What a TiB costs, and a thousand VMs, reckoned from what was measured."""

from __future__ import annotations

from benchmarks.goals import Medians

TIB = float(1 << 40)
_VMS, _DATA, _DAILY = 1000, 100 * 2**30, 0.02


def table(full: Medians, incremental: Medians) -> str:
    """A part of the page; empty if Raksha's full was not measured."""
    try:
        data = full["data"]
        rows = [
            ("processor", "CPU s", full["raksha full, CPU"] / data * TIB),
            ("objects (a PUT each)", "", full["raksha objects"] / data * TIB),
            ("metadata", "MiB", full["raksha metadata"] / data * TIB / 2**20),
            ("stored", "GiB", full["raksha stored"] / data * TIB / 2**30),
        ]
    except KeyError:
        return ""
    fulls, daily = _VMS * _DATA / TIB, _VMS * _DATA * _DAILY / TIB
    lines = [
        "## Cost\n",
        f"From the full above, for a TiB of such data; for {_VMS:,} VMs with {_DATA >> 30} GiB of data each, their "
        f"first fulls ({fulls:.0f} TiB)\nand a day's incrementals ({_DAILY:.0%} of that, {daily:.1f} TiB).\n",
        "| | a TiB | all first fulls | a day |",
        "| --- | --- | --- | --- |",
        *(
            f"| {what}{f', {unit}' if unit else ''} | {value:,.0f} | {value * fulls:,.0f} | {value * daily:,.0f} |"
            for what, unit, value in rows
        ),
    ]
    if (each := incremental.get("incremental, CPU")) is not None:
        lines.append(
            f"\nEach incremental costs {each:.2f} CPU s beside that, most of it the start of the program: {_VMS:,} of "
            f"them {each * _VMS / 60:.0f} CPU minutes.\nAn agent, which is started once, does not pay it each time."
        )
    return "\n".join(lines) + "\n"
