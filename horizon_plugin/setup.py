"""Metadata of the `raksha-dashboard` distribution: the plugin for Horizon."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="raksha-dashboard",
    version="0.1.0",
    description="Raksha in Horizon: backup jobs, restore points and restores of virtual machines",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["raksha_dashboard", "raksha_dashboard.*"]),
    package_data={
        "raksha_dashboard": [
            "conf/*.yaml", "locale/*.pot", "locale/*/LC_MESSAGES/*", "static/raksha_dashboard/*",
            "templates/raksha_dashboard/*.html",
        ]
    },
    include_package_data=True,
    install_requires=["horizon>=25", "raksha[client]>=0.1"],
)  # fmt: skip
