"""Metadata, entry points and extras of the `raksha` distribution. Tools are set up in pyproject.toml."""

import ast
from pathlib import Path
from shutil import rmtree

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

CORE = ["blake3>=1.0", "zstandard>=0.23", "tenacity>=9", "lxml>=5", "msgspec>=0.18", "oslo.config>=9.6", "tqdm>=4.66"]
SWIFT = ["python-swiftclient>=4.6", "keystoneauth1>=5.8"]
#: python3-libnbd comes from the distribution: it is not on PyPI
AGENT = ["libvirt-python>=8"]
#: database of the service (PyMySQL for MariaDB, SQLite needs nothing), and its times; APScheduler 4 is another library
SERVICE = [
    "SQLAlchemy>=2.1",
    "alembic>=1.14",
    "PyMySQL>=1.1",
    "APScheduler>=3.11.3,<4",
    "oslo.messaging>=18",
    "cotyledon>=2",
    "tzdata>=2025.2",
    # the REST API; flask-swagger-ui for its files alone
    "Flask>=3.1",
    "flask-smorest>=0.47",
    "marshmallow>=4,<5",
    "webargs>=8.6",
    "flask-swagger-ui>=5",
    "gunicorn>=23",
    "bcrypt>=5",
    "oslo.policy>=5",
    "PyYAML>=6",
    "prometheus-client>=0.20",
]
#: the API's users and projects from an OpenStack cloud
KEYSTONE = ["keystonemiddleware>=10", "python-memcached>=1.62"]
#: servers and volumes of that cloud
OPENSTACK = ["python-novaclient>=18", "python-cinderclient>=9", "keystoneauth1>=5.8", "os-brick>=6.9"]
#: the library and the command line for the service's API
CLIENT = ["keystoneauth1>=5.8", "openstacksdk>=4", "cliff>=4.9"]
POSTGRESQL = ["psycopg[binary]>=3.2"]
TEST = [
    *POSTGRESQL,
    # the other front door of the client's commands
    "python-openstackclient>=8",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "hypothesis>=6.100",
    "openapi-spec-validator>=0.8",
    "schemathesis>=4",
    # the browser that looks at Horizon is the distribution's; its check for accessibility
    "playwright>=1.48",
    "axe-playwright-python>=0.1.4",
]
#: the documentation as a site (scripts/setup-docs); it describes the other extras, so it wants them beside it
DOCS = [
    "sphinx>=8.2",
    "openstackdocstheme>=3.5",
    "myst-parser>=4",
    "sphinxcontrib-autoprogram>=0.1.9",
]
#: the pictures of benchmarks/
BENCH = ["matplotlib>=3.8"]
LINT = ["ruff>=0.9", "mypy>=1.14", "import-linter>=2.1", "lxml-stubs", "types-tqdm", "types-PyYAML", "towncrier>=24"]


def protection_commands() -> list[str]:
    """`openstack protection …`: as raksha/client/commands/__init__.py has them, which cannot be imported here."""
    source = Path(__file__).with_name("raksha") / "client" / "commands" / "__init__.py"
    statements = ast.parse(source.read_text(encoding="utf-8")).body
    table = next(
        each.value for each in statements if isinstance(each, ast.Assign) and each.targets[0].id == "_BY_MODULE"
    )
    return [
        f"protection_{words.replace(' ', '_')} = raksha.client.commands.{module}:{name}"
        for module, found in ast.literal_eval(table).items()
        for words, name in found.items()
    ]


class BuildWithMigrations(build_py):
    """The migrations lie outside the package, where operators look for them; a wheel carries them inside."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            inside = Path(self.build_lib) / "raksha" / "alembic"
            self.copy_tree(str(Path(__file__).with_name("alembic")), str(inside))
            for cache in inside.rglob("__pycache__"):
                rmtree(cache)


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
        "bench": BENCH,
        "client": CLIENT,
        "docs": [*CLIENT, *DOCS],
        "keystone": KEYSTONE,
        "openstack": OPENSTACK,
        "postgresql": POSTGRESQL,
        "service": SERVICE,
        "swift": SWIFT,
        "test": [*TEST, *LINT],
        "all": [*AGENT, *CLIENT, *KEYSTONE, *OPENSTACK, *SERVICE, *SWIFT],
    },
    cmdclass={"build_py": BuildWithMigrations},
    entry_points={
        "console_scripts": [
            "raksha = raksha.cmd.main:main",
            "raksha-agent = raksha.cmd.agent:main",
            "raksha-api = raksha.cmd.api:main",
            "raksha-manage = raksha.cmd.manage:main",
            "raksha-scheduler = raksha.cmd.scheduler:main",
        ],
        "oslo.config.opts": ["raksha = raksha.config_opts:list_opts"],
        "openstack.cli.extension": ["data_protection = raksha.client.osc"],
        "openstack.data_protection.v1": protection_commands(),
    },
)
