"""Bars for the page, by matplotlib (extra `bench`); without it there are none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.goals import Medians

#: by section: what stands below each bar, and the figure's name
PICTURES: dict[str, dict[str, str]] = {
    "directory": {
        "Raksha": "raksha full",
        "zstd alone": "zstd alone",
        "virtnbdbackup\n(plain)": "virtnbdbackup plain full",
        "virtnbdbackup\n(lz4)": "virtnbdbackup lz4 full",
        "qemu-img -c": "qemu-img full",
        "borg lz4": "borg lz4 full",
        "borg zstd": "borg zstd full",
        "restic": "restic full",
    },
    "increments": {
        "full": "full, running",
        "incremental": "incremental",
        "pull,\n10 GiB": "pull, 10 GiB",
        "pull,\n1 TiB": "pull, 1 TiB",
    },
    "clones": {"first clone": "first", "twentieth": "last"},
    "chains": {f"length {length}": f"restore, length {length}" for length in (1, 10, 50)},
}
_OURS, _OTHERS = "#2a6f97", "#adb5bd"


def draw(medians: Mapping[str, Medians], folder: Path) -> None:
    """Write bench-SECTION.svg of each section that has its figures."""
    try:
        import matplotlib as mpl

        mpl.use("svg")
        # the same figures give the same file
        mpl.rcParams["svg.hashsalt"] = "raksha"
        from matplotlib import pyplot
    except ImportError:
        return
    for section, bars in PICTURES.items():
        here = {text: medians[section][name] for text, name in bars.items() if name in medians.get(section, {})}
        if not here:
            continue
        figure, axes = pyplot.subplots(figsize=(8, 0.45 * len(here) + 0.9))
        ours = [section != "directory" or text == "Raksha" for text in here]
        drawn = axes.barh(list(here), list(here.values()), color=[_OURS if each else _OTHERS for each in ours])
        axes.bar_label(drawn, fmt="%.2f s", padding=3)
        axes.invert_yaxis()
        axes.set_xlabel("seconds, median; less is better")
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        figure.savefig(folder / f"bench-{section}.svg", metadata={"Date": None})
        pyplot.close(figure)
