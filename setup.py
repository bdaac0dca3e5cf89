"""Metadata, entry points and extras of the `raksha` distribution. Tools are set up in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = ["blake3>=1.0", "zstandard>=0.23", "tenacity>=9", "lxml>=5", "msgspec>=0.18", "oslo.config>=9.6", "tqdm>=4.66"]
SWIFT = ["python-swiftclient>=4.6", "keystoneauth1>=5.8"]
#: python3-libnbd comes from the distribution: it is not on PyPI
AGENT = ["libvirt-python>=8"]
TEST = ["pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "hypothesis>=6.100"]
LINT = ["ruff>=0.9", "mypy>=1.14", "import-linter>=2.1", "lxml-stubs", "types-tqdm", "towncrier>=24"]

setup(
    name="raksha",
    version="0.1.0",
    description="Data protection for virtual machines: consistent copies, incremental for ever, restored bit for bit",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["raksha", "raksha.*"]),
    package_data={"raksha": ["py.typed"]},
    install_requires=CORE,
    extras_require={
        "agent": AGENT,
        "swift": SWIFT,
        "test": [*TEST, *LINT],
        "all": [*AGENT, *SWIFT],
    },
    entry_points={"console_scripts": ["raksha = raksha.cmd.main:main"]},
)
