"""The test bed: real guests under libvirt, and the means to tell whether their disks are right. See README.md here."""

from tests.bed.bed import Bed
from tests.bed.daemon import Host, SessionHost, SystemHost
from tests.bed.disks import Disk, as_raw, image_info
from tests.bed.image import BedError, guest_image
from tests.bed.machine import Machine
from tests.bed.records import RecordsWrong, check_records, make_header, make_record, read_records, slot_of

__all__ = [
    "Bed", "BedError", "Disk", "Host", "Machine", "RecordsWrong", "SessionHost", "SystemHost", "as_raw",
    "check_records", "guest_image", "image_info", "make_header", "make_record", "read_records", "slot_of",
]  # fmt: skip
