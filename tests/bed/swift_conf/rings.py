"""Run by Swift's own Python: make the three rings. Arguments: folder, then KIND PORT... for each kind."""

import sys
from pathlib import Path

from swift.common.ring import RingBuilder


def make(folder: Path, kind: str, ports: list[int]) -> None:
    # as many replicas as devices: every object is everywhere
    builder = RingBuilder(part_power=4, replicas=len(ports), min_part_hours=1)
    for number, port in enumerate(ports):
        address = {"ip": "127.0.0.1", "port": port, "replication_ip": "127.0.0.1", "replication_port": port}
        builder.add_dev({"region": 1, "zone": number, "device": f"d{number}", "weight": 1, "meta": "", **address})
    builder.rebalance(seed="raksha")
    builder.get_ring().save(str(folder / f"{kind}.ring.gz"))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    for word in sys.argv[2:]:
        name, *numbers = word.split(":")
        make(target, name, [int(each) for each in numbers])
