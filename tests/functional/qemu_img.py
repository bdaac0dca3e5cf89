"""QEMU's own tools, as the judge of images."""

import json
import subprocess


def qemu_img(*arguments):
    """What `qemu-img` prints. An exit code other than 0 is a failed assertion."""
    done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"qemu-img {arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def assert_checks(image):
    """QEMU finds no error and no leak."""
    report = json.loads(qemu_img("check", "--output=json", "-f", "qcow2", image))
    assert report["check-errors"] == 0
    assert {key for key in report if key in ("leaks", "corruptions")} == set()


def assert_sound(image, truth):
    """No error, no leak, and QEMU reads the bytes of the raw file `truth`."""
    assert_checks(image)
    assert qemu_img("compare", "-f", "raw", "-F", "qcow2", truth, image) == "Images are identical.\n"


def info(image):
    return json.loads(qemu_img("info", "--output=json", "-f", "qcow2", image))
